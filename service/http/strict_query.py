"""A query parameter that the route does not know is refused: misspelt, it would silently change nothing."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, Request

from vidlex.service.errors import InvalidRequest

_MAX_SHOWN = 100
"""Names that are given back, and characters of each."""


async def _only_known(request: Request) -> None:
    """Raises InvalidRequest that names the parameters."""
    if not request.query_params:
        return
    known = _names_of(request.scope["route"].dependant)
    unknown = [name[:_MAX_SHOWN] for name in request.query_params if name not in known][:_MAX_SHOWN]
    if unknown:
        there_are = f"there are: {', '.join(sorted(known))}" if known else "this path takes none"
        raise InvalidRequest(
            f"There is no query parameter {unknown[0]!r} here; {there_are}",
            errors=[{"pointer": f"/{name}", "detail": "there is no such query parameter"} for name in unknown],
        )


def _names_of(dependant: Any) -> set[str]:
    """Of FastAPI's record of what a route asks for, with all that it depends on."""
    return {field.alias for field in dependant.query_params}.union(*map(_names_of, dependant.dependencies))


ONLY_KNOWN = Depends(_only_known)
