"""The page at /: three files of ours, no others, nothing from the network."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent.parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}


def _send(name: str) -> Response:
    path = _FOLDER / name
    return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers={"Cache-Control": "no-cache"})


@router.get("/")
async def index() -> Response:
    return _send("index.html")


@router.get("/app.js")
async def script() -> Response:
    return _send("app.js")


@router.get("/style.css")
async def style() -> Response:
    return _send("style.css")
