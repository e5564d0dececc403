from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def service_version() -> str:
    """Of the installed package; "0" in a checkout that is not installed."""
    try:
        return version("vidlex")
    except PackageNotFoundError:
        return "0"
