"""Imports that no arrow may allow: data for `test_structure.py`."""

from __future__ import annotations

# Direct imports.
DIRECTLY_FORBIDDEN = {
    "service.routes": ("torch", "faiss", "model", "open_clip", "transformers"),
    "service.schemas": ("fastapi", "torch", "numpy"),
    "migrations": ("service", "model"),
    "model": ("service", "fastapi", "redis"),
}

# Over any number of our own files.
TRANSITIVELY_FORBIDDEN = {
    "service.client": ("torch", "fastapi", "starlette", "numpy", "redis", "model"),
    "service.labels": ("torch", "fastapi", "starlette", "model", "open_clip", "transformers"),
    "service.access": ("torch", "fastapi", "starlette", "model", "open_clip", "transformers"),
    "service.models": ("service.schemas", "fastapi", "starlette", "pydantic"),
    "service.classification": ("service.schemas", "fastapi", "starlette", "pydantic"),
    "service.decode.worker": ("torch", "fastapi", "starlette", "redis", "open_clip", "transformers"),
    "model.decode": ("torch", "open_clip", "transformers"),
    "model.types": ("torch",),
    "model.scoring": ("torch",),
    "model.calibration": ("torch", "open_clip", "transformers"),
}
