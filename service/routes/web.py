"""The page at /, the interactive description of the interface at /docs, and their assets."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from vidlex.service.http.conditional import is_not_modified

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent.parent / "web"
_FILES = {
    "/": "index.html",
    "/app.js": "app.js",
    "/style.css": "style.css",
    "/docs": "docs.html",
    "/docs/init.js": "docs.js",
    "/docs/swagger-ui.css": "vendor/swagger-ui/swagger-ui.css",
    "/docs/swagger-ui-bundle.js": "vendor/swagger-ui/swagger-ui-bundle.js",
}
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}


@cache
def _read(name: str) -> tuple[bytes, str]:
    # (content, entity tag without quotes)
    content = (_FOLDER / name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:16]


async def _send_file(request: Request) -> Response:
    name = _FILES[request.scope["route"].path]
    content, etag = _read(name)
    headers = {"Cache-Control": "no-cache", "ETag": f'"{etag}"'}
    if is_not_modified(etag, request.headers.get("If-None-Match")):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_MEDIA_TYPES[Path(name).suffix], headers=headers)


for _path in _FILES:
    router.add_api_route(_path, _send_file)
