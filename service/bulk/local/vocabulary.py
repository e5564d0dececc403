"""Where the labels of a bulk run come from: names, a file, or a namespace of a label store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlex.service.bounds import DEFAULT_MAX_LABELS
from vidlex.service.errors import InvalidParameter, LabelTextInvalid, NotFound, StoreUnavailable
from vidlex.service.labels.embedded.direct import direct_store
from vidlex.service.labels.embedded.server_files import ServerFiles
from vidlex.service.labels.files import LabelFileError, format_of, opened, read
from vidlex.service.labels.store.calibrations import Calibration
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.labels.store.label_reader import LabelReader
from vidlex.service.labels.store.names import fold
from vidlex.service.labels.store.records import NewLabel, clean
from vidlex.service.settings import Settings

_MAX_PROBLEMS = 100
_MAX_READS = 5  # of a namespace that changes meanwhile


@dataclass(frozen=True, eq=False)
class StoredVocabulary:
    """A namespace at one revision, with the vectors of one model."""

    namespace: str
    labels: tuple[IndexedLabel, ...]  # in ascending order of ids
    vectors: Mapping[str, NDArray[np.float32]]  # [D] by id; those that the model has not encoded are missing
    calibration: Calibration | None
    revision: int


def labels_of_names(names: Iterable[str | Mapping[str, Any]]) -> list[NewLabel]:
    """Of names, or of objects as in a .jsonl file of labels. Raises as ``labels_of`` does."""
    if isinstance(names, str):
        raise InvalidParameter("labels must be a list of names, not a single text")
    return labels_of({"name": name} if isinstance(name, str) else name for name in names)


def labels_of_file(path: Path) -> list[NewLabel]:
    """Of a .txt, .csv, .json or .jsonl file as for ``vidlex labels import``. Raises as ``labels_of`` does."""
    try:
        with opened(path) as stream:
            return labels_of(read(stream, format_of(path, None)))
    except LabelFileError as error:
        raise InvalidParameter(f"The file of labels cannot be used: {error}") from None


def labels_of(entries: Iterable[Mapping[str, Any]]) -> list[NewLabel]:
    """Checked and normalised as at their registration; a repeated entry counts once. Parents are ignored.

    Raises InvalidParameter without labels, with too many, for an invalid one, and for two labels of one name.
    """
    labels: list[NewLabel] = []
    owners: dict[str, NewLabel] = {}
    problems: list[dict[str, str]] = []
    for index, entry in enumerate(entries):
        if len(labels) == DEFAULT_MAX_LABELS:
            raise InvalidParameter(f"There are more than {DEFAULT_MAX_LABELS} labels")
        try:
            label = clean(_new_label(entry))
            taken = [owners[text] for text in map(fold, (label.name, *label.aliases)) if text in owners]
            if label in taken:
                continue
            if taken:
                raise InvalidParameter(f"The label {taken[0].name!r} has this name or alias too")
        except (InvalidParameter, LabelTextInvalid) as error:
            problems.append({"pointer": f"/labels/{index}", "detail": str(error)})
            continue
        owners |= dict.fromkeys(map(fold, (label.name, *label.aliases)), label)
        labels.append(label)
    if problems:
        raise InvalidParameter(_sentence(problems), errors=problems[:_MAX_PROBLEMS])
    if not labels:
        raise InvalidParameter("There are no labels")
    return labels


def _new_label(entry: Mapping[str, Any]) -> NewLabel:
    if not isinstance(entry, Mapping):
        raise InvalidParameter("A label is a name, or an object with a name")
    name = entry.get("name")
    lists = {key: entry.get(key) or () for key in ("aliases", "categories")}
    for key, value in {"name": [name], **lists}.items():
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(x, str) for x in value):
            raise InvalidParameter(f"The {key} must be {'a text' if key == 'name' else 'a list of texts'}")
    assert isinstance(name, str)
    return NewLabel(name, tuple(lists["aliases"]), tuple(lists["categories"]), threshold=entry.get("threshold"))


def _sentence(problems: Sequence[Mapping[str, str]]) -> str:
    number = int(problems[0]["pointer"].rpartition("/")[2]) + 1
    more = f"; {len(problems) - 1} more are not valid" if len(problems) > 1 else ""
    return f"Label {number} is not valid: {problems[0]['detail']}{more}"


def read_namespace(settings: Settings, namespace: str, fingerprint: str) -> StoredVocabulary:
    """Of the configured label store, also while a service uses it. Changes nothing.

    Raises NotFound for a namespace without labels, StoreUnavailable.
    """
    url = None if settings.redis_url is None else settings.redis_url.get_secret_value()
    if url is None and not ServerFiles(settings.data_dir).folder.exists():
        raise NotFound("There is no label store in the data folder; set VIDLEX_DATA_DIR or VIDLEX_REDIS_URL")
    with direct_store(settings.data_dir, url, settings.redis_password) as client:
        try:
            reader = LabelReader(client, namespace)
        except ValueError:
            raise InvalidParameter("The namespace is not valid") from None
        reader.check_schema()
        for _ in range(_MAX_READS):
            found = _read(reader, fingerprint)
            if found is not None:
                break
        else:
            raise StoreUnavailable("The namespace changes while it is read; try again")
    if not found.labels:
        raise NotFound("The namespace has no labels")
    return found


def _read(reader: LabelReader, fingerprint: str) -> StoredVocabulary | None:
    """None if there was a change meanwhile."""
    head = reader.head()
    calibration = reader.calibration(fingerprint)
    rows = [row for rows in reader.scan(fingerprint) for row in rows]
    if reader.head() != head:
        return None
    return StoredVocabulary(
        reader.namespace,
        tuple(row.label for row in rows),
        {row.label.id: row.vector for row in rows if row.vector is not None},
        calibration,
        head.revision,
    )
