"""Loads what the libraries would load with the first file, for a process that will have no access to files."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages

import av
from PIL import Image

_WITHOUT = ("av.__main__", "av.datasets")
_LATE = ("numpy.ma",)  # by numpy.unique


def preload() -> None:
    late = [module.name for module in walk_packages(av.__path__, "av.") if module.name not in _WITHOUT]
    for name in (*late, *_LATE):
        import_module(name)
    Image.init()
