"""API keys from a file, for mounted secrets and for the first administrator.

Each line is ``KEY scope=SCOPE [namespace=NAME] [name=TEXT]``; empty lines and lines that begin with ``#`` are skipped.
KEY is the key's text, or ``vdx_<id>_sha256:<digest>`` if the file must hold no secret.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

from vidlex.service.access.api_keys import ANY_NAMESPACE, SCOPES, KeyRecord, Scope, digest_of, key_id_of
from vidlex.service.labels.store.redis_keys import Keys

_HASHED = re.compile(r"vdx_(?P<id>[0-9a-f]{12})_sha256:(?P<digest>[0-9a-f]{64})")
_OPTIONS = ("scope", "namespace", "name")


class KeyFileError(ValueError):
    """The message names the line and never repeats its text."""


def read_key_file(path: Path) -> dict[str, KeyRecord]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise KeyFileError(f"cannot read the API key file: {reason}") from None
    records: dict[str, KeyRecord] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            record = _parse(words)
            if record.id in records:
                raise ValueError("duplicate key id")
        except ValueError as error:
            raise KeyFileError(f"API key file, line {number}: {error}") from None
        records[record.id] = record
    if not records:
        raise KeyFileError("the API key file contains no keys")
    return records


def _parse(words: list[str]) -> KeyRecord:
    hashed = _HASHED.fullmatch(words[0])
    key_id = hashed["id"] if hashed else key_id_of(words[0])
    if key_id is None:
        raise ValueError("expected a key: vdx_ID_SECRET or vdx_ID_sha256:DIGEST")
    options: dict[str, str] = {}
    for word in words[1:]:
        option, equals, value = word.partition("=")
        if option not in _OPTIONS or not equals or option in options:
            raise ValueError("expected scope=, namespace= and name= after the key, each at most once")
        options[option] = value
    if options.get("scope") not in SCOPES:
        raise ValueError(f"scope= must be one of {', '.join(SCOPES)}")
    namespace = options.get("namespace", ANY_NAMESPACE)
    if namespace != ANY_NAMESPACE:
        Keys(namespace)
    return KeyRecord(
        id=key_id,
        digest=hashed["digest"] if hashed else digest_of(words[0]),
        scope=cast(Scope, options["scope"]),
        namespace=None if namespace == ANY_NAMESPACE else namespace,
        name=options.get("name", "from the key file"),
    )
