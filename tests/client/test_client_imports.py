"""`from vidlex import Client`: what it imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vidlex

SERVER = {"torch", "fastapi", "starlette", "numpy", "pyarrow", "fsspec", "redis", "faiss", "av", "ray", "typer"}


def run(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_vidlex_imports_nothing_else() -> None:
    loaded = run("import sys; before = set(sys.modules); import vidlex; print(*set(sys.modules) - before)")
    assert loaded <= {"vidlex"}


def test_the_client_needs_no_package_of_the_server() -> None:
    code = "import sys; from vidlex import AsyncClient, Client, errors, verify_webhook; Client(); print(*sys.modules)"
    loaded = run(code)
    assert not loaded & SERVER and "vidlex.service.client.client" in loaded


def test_names_are_found_once_and_others_are_errors() -> None:
    from vidlex.service.client import errors
    from vidlex.service.client.client import Client

    assert vidlex.Client is Client and vidlex.errors is errors
    assert set(vidlex.__all__) <= set(dir(vidlex))
    with pytest.raises(AttributeError, match="nonsense"):
        vidlex.nonsense  # noqa: B018
