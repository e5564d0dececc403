from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
IS_HEAD_KEY = "vidlex_is_head"  # in the ASGI scope of a HEAD request, for routes whose body has no end


class HttpMethods:
    """Answers OPTIONS, and passes HEAD on as GET. RequestContext removes the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope.get("method")
        if method == "OPTIONS" and (allow := allow_header(scope)):
            await Response(status_code=204, headers=allow)(scope, receive, send)
        elif method == "HEAD":
            # In place, so that the outer layers see the route and the error code that are stored in the scope.
            scope["method"] = "GET"
            scope[IS_HEAD_KEY] = True
            try:
                await self._app(scope, receive, send)
            finally:
                scope["method"] = method
        else:
            await self._app(scope, receive, send)


def allow_header(scope: Scope) -> dict[str, str]:
    # Starlette's own header has the methods of only the first of several routes with the same path.
    routes = scope["app"].routes
    allowed = {
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    }
    if "GET" in allowed:
        allowed.add("HEAD")
    return {"Allow": ", ".join(sorted(allowed | {"OPTIONS"}))} if allowed else {}
