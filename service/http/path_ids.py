"""Paths whose parameters are ids: without a colon, so that `/jobs/ID:retry` is a path of its own."""

from __future__ import annotations

from starlette.convertors import StringConvertor, register_url_convertor


class _IdConvertor(StringConvertor):
    regex = "[^/:]+"


register_url_convertor("id", _IdConvertor())


def with_ids(path: str) -> str:
    return path.replace("}", ":id}")
