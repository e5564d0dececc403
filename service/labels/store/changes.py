"""The change stream of a namespace: one entry per atomic step, in the same transaction as the step.

An entry's id is the revision that the step made. Entries form a chain: each carries a random ``token`` and the token
of its predecessor. A reader that meets a hole in the revisions has fallen behind the trimming; one that meets a
foreign predecessor follows a store whose past was exchanged (restored from a backup, or failed over to a replica
that lacked the last writes). Both must load everything anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from vidlex.service.labels.store.redis_keys import parse_change_entry_id

ChangeKind = Literal["put", "remove", "vectors"]


@dataclass(frozen=True)
class Head:
    """Where a namespace stands: its revision and the token of the step that made it."""

    revision: int
    token: str


START = Head(0, "")
"""Of a namespace that nobody has written to."""


@dataclass(frozen=True)
class Change:
    """One atomic step. ``put``: labels added or updated; ``vectors``: only their vectors, of ``fingerprint``."""

    revision: int
    kind: ChangeKind
    label_ids: tuple[str, ...]
    fingerprint: str | None
    token: str
    previous: str

    @property
    def head(self) -> Head:
        return Head(self.revision, self.token)

    def follows(self, head: Head) -> bool:
        """True when no step lies between ``head`` and this one, and ``head`` is this one's real past."""
        return self.revision == head.revision + 1 and self.previous == head.token


def change_fields(change: Change) -> dict[str, str]:
    return {
        "kind": change.kind,
        "ids": ",".join(change.label_ids),
        "fingerprint": change.fingerprint or "",
        "token": change.token,
        "previous": change.previous,
    }


def parse_change(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Change:
    text = {key.decode(): value.decode() for key, value in fields.items()}
    return Change(
        revision=parse_change_entry_id(entry_id),
        kind=cast(ChangeKind, text["kind"]),
        label_ids=tuple(text["ids"].split(",")),
        fingerprint=text["fingerprint"] or None,
        token=text["token"],
        previous=text["previous"],
    )


def parse_read_reply(reply: Any) -> list[Change]:
    """XREAD's reply for one stream. RESP2 gives [[key, entries]], RESP3 {key: [entries]}, no news an empty one."""
    if not reply:
        return []
    if isinstance(reply, Mapping):
        (batches,) = reply.values()
        entries: Sequence[Any] = [entry for batch in batches for entry in batch]
    else:
        ((_, entries),) = reply
    return [parse_change(entry_id, fields) for entry_id, fields in entries]
