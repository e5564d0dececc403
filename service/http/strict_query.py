"""Refuses unknown and repeated query parameters, which are otherwise ignored silently."""

from __future__ import annotations

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant

from vidlex.service.errors import InvalidRequest

_MAX_NAMES = 100
_MAX_NAME_CHARS = 100


async def _refuse(request: Request) -> None:
    if not request.query_params:
        return
    known = _parameter_names(request.scope["route"].dependant)
    unknown = [name[:_MAX_NAME_CHARS] for name in request.query_params if name not in known][:_MAX_NAMES]
    if unknown:
        hint = f"known: {', '.join(sorted(known))}" if known else "this path accepts none"
        raise InvalidRequest(
            f"Unknown query parameter {unknown[0]!r}; {hint}",
            errors=[{"pointer": f"/{name}", "detail": "unknown query parameter"} for name in unknown],
        )
    for name in known:
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidRequest(
                f"The query parameter {name} is repeated",
                errors=[{"pointer": f"/{name}", "detail": "repeated query parameter"}],
            )


def _parameter_names(dependant: Dependant) -> set[str]:
    return {field.alias for field in dependant.query_params}.union(*map(_parameter_names, dependant.dependencies))


STRICT_PARAMETERS = Depends(_refuse)
