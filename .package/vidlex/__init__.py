"""Self-hosted video tagging with an open, growing vocabulary.

The packages are ``vidlex.service``, ``vidlex.model`` and ``vidlex.migrations``: links to the folders at the root of
the repository. Importing ``vidlex`` imports none of them; ``Client``, ``AsyncClient``, ``Tagger``, ``errors`` and
``verify_webhook`` are imported when they are first used.
"""

TYPE_CHECKING = False  # importing typing takes longer than all of this
if TYPE_CHECKING:
    from vidlex.service.bulk.local.tagger import Tagger
    from vidlex.service.client import errors
    from vidlex.service.client.async_client import AsyncClient
    from vidlex.service.client.client import Client
    from vidlex.service.client.webhooks import verify_webhook

__all__ = ["AsyncClient", "Client", "Tagger", "errors", "verify_webhook"]

_PLACES = {
    "AsyncClient": "vidlex.service.client.async_client",
    "Client": "vidlex.service.client.client",
    "Tagger": "vidlex.service.bulk.local.tagger",
    "verify_webhook": "vidlex.service.client.webhooks",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "errors":
        found: object = import_module("vidlex.service.client.errors")
    elif name in _PLACES:
        found = getattr(import_module(_PLACES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
