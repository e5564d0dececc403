"""A vocabulary at one moment, encoded by one model: what an engine outside a service compares videos with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vidlex.service.bulk.engine import EngineIdentity
from vidlex.service.bulk.identity import vocabulary_digest
from vidlex.service.bulk.local.encoder import LocalEncoder
from vidlex.service.bulk.local.vocabulary import StoredVocabulary
from vidlex.service.errors import InvalidParameter, LabelTextInvalid, VidlexError
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.store.calibrations import Calibration
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.labels.store.records import NewLabel
from vidlex.service.models.applied_calibration import to_apply
from vidlex.service.models.served_model import ModelFacts
from vidlex.service.registration.label_cache import LabelCache

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Picklable, without the model: about 4 D bytes per label."""

    spec: str  # of the model
    facts: ModelFacts
    labels: tuple[IndexedLabel, ...]  # V, in ascending order of ids
    vectors: NDArray[np.float32]  # [V, D]
    namespace: str | None = None  # of the store; None: the ids mean nothing outside
    calibration: Calibration | None = None
    revision: int | None = None
    warnings: tuple[tuple[str, str], ...] = ()  # (code, detail), for each video's result

    @property
    def is_stored(self) -> bool:
        return self.namespace is not None

    @cached_property
    def digest(self) -> str:
        rows = [
            (label.id if self.is_stored else None, label.name, label.threshold, label.categories)
            for label in self.labels
        ]
        return vocabulary_digest(rows, None if self.calibration is None else self.calibration.fingerprint)

    @property
    def identity(self) -> EngineIdentity:
        return EngineIdentity(
            self.facts.id, self.facts.fingerprint, self.digest, self.revision, num_labels=len(self.labels)
        )

    def index(self) -> LabelIndex:
        index = LabelIndex(self.facts.dim, self.facts.fingerprint)
        index.replace(
            [(self.labels, self.vectors)],
            fingerprint=self.facts.fingerprint,
            revision=self.revision or 0,
            calibration=to_apply(self.calibration, dim=self.facts.dim),
        )
        return index


def snapshot_of_labels(
    spec: str,
    encoder: LocalEncoder,
    labels: Sequence[NewLabel],
    cache: LabelCache,
    *,
    on_progress: OnProgress = lambda done, total: None,
) -> Snapshot:
    """Of labels that are in no store: see ``labels_of``.

    Raises LabelTextInvalid for a name that the model cannot encode, EncodeFailed.
    """
    vectors = encoder.encode_labels([label.name for label in labels], cache, on_progress=on_progress)
    for label, vector in zip(labels, vectors, strict=True):
        if isinstance(vector, LabelTextInvalid):
            raise LabelTextInvalid(f"The model cannot encode the label {label.name!r}: {vector}")
        if isinstance(vector, VidlexError):
            raise vector
    indexed = tuple(
        IndexedLabel(f"{number:012d}", label.name, label.categories, label.threshold)
        for number, label in enumerate(labels)
    )
    return Snapshot(spec, _without_calibration(encoder.facts), indexed, _stack(vectors, encoder.facts.dim))


def snapshot_of_namespace(
    spec: str,
    encoder: LocalEncoder,
    stored: StoredVocabulary,
    cache: LabelCache,
    *,
    on_progress: OnProgress = lambda done, total: None,
) -> Snapshot:
    """``stored`` is that of the encoder's fingerprint. Labels without a vector of it are encoded here.

    A label that the model cannot encode is left out, as a service does. Raises EncodeFailed, and InvalidParameter if
    the model can encode none.
    """
    missing = [label.name for label in stored.labels if label.id not in stored.vectors]
    namespace = stored.namespace
    encoded = encoder.encode_labels(missing, cache, namespace=namespace, on_progress=on_progress)
    of_name = dict(zip(missing, encoded, strict=True))
    vectors = {label.id: stored.vectors.get(label.id, of_name.get(label.name)) for label in stored.labels}
    usable = tuple(label for label in stored.labels if isinstance(vectors[label.id], np.ndarray))
    if not usable:
        raise InvalidParameter("The model can encode no label of the namespace")
    num_missing = len(stored.labels) - len(usable)
    detail = f"{num_missing} labels are not encoded by this model (yet) and were left out"
    return Snapshot(
        spec,
        _without_calibration(encoder.facts),
        usable,
        _stack([vectors[label.id] for label in usable], encoder.facts.dim),
        namespace,
        stored.calibration,
        stored.revision,
        (("labels_not_encoded", detail),) if num_missing else (),
    )


def _without_calibration(facts: ModelFacts) -> ModelFacts:
    return replace(facts, calibration=None)  # only the fit of a calibration needs the checkpoint's own


def _stack(vectors: Iterable[object], dim: int) -> NDArray[np.float32]:
    return np.array(list(vectors), np.float32).reshape(-1, dim)
