"""Why an engine cannot be opened, as the exceptions that the client of a service raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vidlex.model.specs import ModelNotFound
from vidlex.service.bulk.engine import EngineUnavailable
from vidlex.service.bulk.lists import SourceError
from vidlex.service.bulk.remote import MissingPackage
from vidlex.service.client.errors import ConfigurationInvalid, NotFound, RequestInvalid, Unavailable, error_of
from vidlex.service.errors import VidlexError


@contextmanager
def as_client_errors() -> Iterator[None]:
    """While an engine is opened, or an argument is checked."""
    try:
        yield
    except VidlexError as error:
        problem = {**error.extra, "code": error.code, "title": error.title, "detail": str(error)}
        raise error_of(problem, error.status) from error
    except ModelNotFound as error:
        raise NotFound(str(error), code="model_not_found") from error
    except SourceError as error:
        raise RequestInvalid(str(error), code="source_invalid") from error
    except ModuleNotFoundError as error:
        hint = "" if isinstance(error, MissingPackage) else "; Tagger needs pip install 'vidlex[server]'"
        raise ConfigurationInvalid(f"{error}{hint}", code="package_missing") from error
    except Exception as error:
        # Their modules import torch, or packages that may be missing.
        name = type(error).__name__
        if name == "SettingsError":
            raise ConfigurationInvalid(str(error)) from error
        if name in ("CheckpointError", "WeightsError"):
            raise Unavailable(str(error), code="model_not_loaded") from error
        if name == "StartFailed":
            raise Unavailable("The decode processes cannot be started", code="decoder_not_started") from error
        if isinstance(error, ValueError):  # a device that there is not
            raise RequestInvalid(str(error), code="invalid_parameter") from error
        raise


@contextmanager
def as_client_errors_of_run() -> Iterator[None]:
    """What else a run raises comes from the caller's own iterable."""
    try:
        yield
    except EngineUnavailable as error:
        raise Unavailable(str(error), code="engine_unavailable") from error
    except SourceError as error:
        raise RequestInvalid(str(error), code="source_invalid") from error
    except MissingPackage as error:
        raise ConfigurationInvalid(str(error), code="package_missing") from error
    except ValueError as error:
        if type(error).__name__ == "OutputError":
            raise RequestInvalid(str(error), code="output_invalid") from error
        raise
