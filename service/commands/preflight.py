"""Checks before a command imports PyTorch: settings, model, data folder, API keys."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from vidlex.service.commands.extras import require
from vidlex.service.commands.output import EXIT_USAGE, CommandError
from vidlex.service.errors import NoApiKeys, StoreUnavailable

if TYPE_CHECKING:
    from vidlex.service.settings import Settings


def settings_or_error(**overrides: object) -> Settings:
    """Raises CommandError with the names of invalid variables."""
    from vidlex.service.settings import SettingsError, load_settings

    try:
        return load_settings(**overrides)
    except SettingsError as error:
        raise CommandError(str(error), exit_code=EXIT_USAGE) from None


def require_model(spec: str) -> None:
    """Raises CommandError for an unknown name, or a folder that is not a checkpoint."""
    from vidlex.model.specs import ModelNotFound, check_spec

    try:
        check_spec(spec)
    except ModelNotFound as error:
        raise CommandError(str(error), exit_code=EXIT_USAGE) from None


def check_worker(settings: Settings) -> None:
    """Raises CommandError if a worker cannot start with these settings."""
    require("torch", "fastapi", "redis", "structlog")
    require_model(settings.model)
    _require_writable(settings)


def check_service(settings: Settings) -> None:
    """Raises CommandError if the service cannot start with these settings."""
    require("uvicorn")
    check_worker(settings)
    if settings.redis_url is None:
        _require_unused_store(settings)
    if not (settings.insecure or settings.on_loopback):
        _require_keys(settings)


def _require_writable(settings: Settings) -> None:
    folder = settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(
            f"cannot write to the data folder {folder}: {error.strerror}; set --data-dir or VIDLEX_DATA_DIR"
        ) from None


def _require_unused_store(settings: Settings) -> None:
    from vidlex.service.labels.embedded.server_files import DataFolderInUse, ServerFiles

    files = ServerFiles(settings.data_dir)
    try:
        files.create()
        files.lock_for_service().close()
    except DataFolderInUse as error:
        raise CommandError(f"the data folder {error.internal}; stop that service, or set --data-dir") from None
    except (StoreUnavailable, OSError) as error:
        detail = getattr(error, "internal", "") or str(error)
        raise CommandError(f"the data folder {settings.data_dir} cannot be used: {detail}") from None


def _require_keys(settings: Settings) -> None:
    from vidlex.service.access.key_file import KeyFileError, read_key_file
    from vidlex.service.access.key_store import KeyStore
    from vidlex.service.commands.stores import opened_store

    try:
        if settings.api_keys_file is not None and read_key_file(settings.api_keys_file):
            return
        with opened_store(settings) as client:
            if KeyStore(client).load()[1]:
                return
    except KeyFileError as error:
        raise CommandError(str(error)) from None
    except StoreUnavailable:
        return  # the service waits for its store, and then checks
    raise CommandError(str(NoApiKeys()))
