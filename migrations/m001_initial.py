"""Schema 1: the first layout. Frozen; a change of the layout needs another migration.

Per namespace, with the namespace in braces as the cluster's hash tag:

    vidlex:{NS}:changes                stream  <revision>-0: kind, ids, fingerprint, token, previous
    vidlex:{NS}:names                  hash    normalised name or alias -> label id
    vidlex:{NS}:records                hash    label id -> JSON record
    vidlex:{NS}:order                  zset    label ids, score 0
    vidlex:{NS}:category:<category>    zset    label ids of one category, score 0
    vidlex:{NS}:generations            hash    encoder fingerprint -> D
    vidlex:{NS}:vectors:<fingerprint>  hash    label id -> D little-endian float32 and their CRC-32

An empty store is a valid store of this schema, so nothing is written. A store with such keys but without a recorded
schema was not written by any released version and is rejected.
"""

from __future__ import annotations

from typing import Any

NUMBER = 1


def apply(client: Any) -> None:
    for key in client.scan_iter(match="vidlex:{*", count=1000):
        raise ValueError(f"the store has {key!r} but no schema number; restore it from a backup or empty it")
