"""The change stream of a namespace: one entry per atomic step, written in the step's transaction.

An entry's id is the revision that the step created. Entries form a chain: each holds a random token and its
predecessor's token. A reader that finds a gap in the revisions is behind the trimmed stream. A reader that finds an
unknown predecessor reads another history: the store was restored from a backup, or failed over to a replica without
the last writes. In both cases it must reload everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from vidlex.service.labels.store.redis_keys import parse_change_entry_id

ChangeKind = Literal["put", "remove", "vectors", "calibration"]


class ChangeCorrupt(ValueError):
    """An entry cannot be read. A reader reloads everything; the head still has a revision."""


@dataclass(frozen=True)
class Head:
    revision: int
    token: str


EMPTY_HEAD = Head(0, "")


@dataclass(frozen=True)
class Change:
    """Kind ``put`` adds or updates labels; ``vectors`` stores their vectors of ``fingerprint``; ``calibration`` stores
    or removes the calibration of ``fingerprint``, without any label."""

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
    """Raises ChangeCorrupt."""
    try:
        text = {key.decode(): value.decode() for key, value in fields.items()}
        if text["kind"] not in get_args(ChangeKind):
            raise ValueError(f"unknown kind {text['kind']!r}")
        return Change(
            revision=parse_change_entry_id(entry_id),
            kind=cast(ChangeKind, text["kind"]),
            label_ids=tuple(text["ids"].split(",")) if text["ids"] else (),
            fingerprint=text["fingerprint"] or None,
            token=text["token"],
            previous=text["previous"],
        )
    except (ValueError, KeyError) as error:
        raise ChangeCorrupt(f"the change {entry_id!r} cannot be read: {error!r}") from error


def token_of(fields: Mapping[bytes, bytes]) -> str:
    """Empty if it is missing: no reader knows such an entry, so all of them reload."""
    return fields.get(b"token", b"").decode("utf-8", "replace")


def parse_read_reply(reply: Any) -> list[Change]:
    """Parse XREAD's reply for one stream: RESP2 [[key, entries]], RESP3 {key: [entries]}, empty without entries.

    Raises ChangeCorrupt.
    """
    if not reply:
        return []
    if isinstance(reply, Mapping):
        (batches,) = reply.values()
        entries: Sequence[Any] = [entry for batch in batches for entry in batch]
    else:
        ((_, entries),) = reply
    return [parse_change(entry_id, fields) for entry_id, fields in entries]
