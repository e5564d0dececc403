"""Keys of a namespace's feedback. They share the hash tag of its labels, so that one transaction may change both.

vidlex-feedback:{NAMESPACE}:revision              string   counts the writes, which watch it
vidlex-feedback:{NAMESPACE}:bytes                 string   size of all judgements
vidlex-feedback:{NAMESPACE}:labels                hash     label id -> number of its judgements
vidlex-feedback:{NAMESPACE}:ids                   hash     judgement id -> label id, space, subject
vidlex-feedback:{NAMESPACE}:judgements:<label id> hash     subject -> JSON (see records.py)
vidlex-feedback:{NAMESPACE}:versions:<label id>   hash     version id -> JSON of a threshold that was stored
"""

from __future__ import annotations

from dataclasses import dataclass

from vidlex.service.bounds import NAMESPACE_RULE
from vidlex.service.labels.store.redis_keys import is_namespace

PREFIX = "vidlex-feedback"


@dataclass(frozen=True)
class FeedbackKeys:
    namespace: str

    def __post_init__(self) -> None:
        if not is_namespace(self.namespace):
            raise ValueError(f"a namespace is {NAMESPACE_RULE}; got {self.namespace!r}")

    @property
    def revision(self) -> str:
        return self._key("revision")

    @property
    def num_bytes(self) -> str:
        return self._key("bytes")

    @property
    def labels(self) -> str:
        return self._key("labels")

    @property
    def ids(self) -> str:
        return self._key("ids")

    def judgements(self, label_id: str) -> str:
        return self._key(f"judgements:{label_id}")

    def versions(self, label_id: str) -> str:
        return self._key(f"versions:{label_id}")

    def _key(self, kind: str) -> str:
        return f"{PREFIX}:{{{self.namespace}}}:{kind}"
