"""YouTube-8M (2018): vocabulary, video-level or frame-level TFRecords, and the human segment ratings of 2019.

A label's id is the ``Index`` column, never the row number. Labels are made by machines: an absent label is unknown.
Segment ratings (score 0) are the only verified negatives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidlex.model.data.annotations import AnnotationError, Row, is_youtube_id, read_csv
from vidlex.model.data.dataset import SPLITS, DatasetFacts, LabelText, VideoFiles, relative, write_dataset
from vidlex.model.data.manifest import Entry
from vidlex.model.data.tfrecord import Value, features, read_records

NUM_CLASSES = 3862
SEGMENT_SECONDS = 5
GAMES = "Games"
VERTICALS = ("Vertical1", "Vertical2", "Vertical3")
_COLUMNS = ("Index", "TrainVideoCount", "KnowledgeGraphId", "Name", *VERTICALS)
_VOCABULARY = "take vocabulary.csv of the 2018 release (3,862 classes), research.google.com/youtube8m/download.html"
_RECORDS = "take the records of the 2018 release (folders 2/video, 2/frame, 3/frame)"
_SHARD = re.compile(r"(train|validate|test)[A-Za-z0-9_-]*\.tfrecord")


@dataclass(frozen=True)
class VideoClass:
    """One row of vocabulary.csv."""

    index: int
    entity: str
    """Knowledge-graph id, ``/m/...``."""
    name: str
    """Empty in 56 rows."""
    verticals: tuple[str, ...]
    num_train_videos: int


def read_vocabulary(path: Path) -> dict[int, VideoClass]:
    """All 3,862 classes by Index. Raises AnnotationError for any other list of labels, the 2017 numbering included."""
    _refuse_label_names(path)
    found: dict[int, VideoClass] = {}
    for row in read_csv(path, _COLUMNS, missing_column=_VOCABULARY):
        index = row.integer("Index")
        if index >= NUM_CLASSES:
            raise row.error(f"Index {index}: {_OLD}", _VOCABULARY)
        if index in found:
            raise row.error(f"Index {index} comes twice", _VOCABULARY)
        verticals = tuple(v for v in (row[column].strip() for column in VERTICALS) if v)
        found[index] = VideoClass(
            index, row["KnowledgeGraphId"], row["Name"].strip(), verticals, row.integer("TrainVideoCount")
        )
    if len(found) != NUM_CLASSES:
        problem = f"{len(found)} classes, not {NUM_CLASSES} (the vocabulary of 2019 lists the 1,000 rated ones only)"
        raise AnnotationError(path, None, problem, _VOCABULARY)
    return found


_OLD = "the numbering of 2017 and before (4,716 classes), which names other things by the same numbers"


def _refuse_label_names(path: Path) -> None:
    """Two files called label_names_2018.csv circulate; one has the old numbering, neither has verticals."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        header = file.readline(200).decode("utf-8", "replace").strip().lstrip("\ufeff")
        if header != "label_id,label_name":
            return
        for line, raw in enumerate(file, start=2):
            number = raw.split(b",", 1)[0].strip()
            if number.isdigit() and int(number) >= NUM_CLASSES:
                raise AnnotationError(path, line, f"label id {int(number)}: {_OLD}", _VOCABULARY)
    raise AnnotationError(path, 1, "a list of names without verticals: games cannot be told", _VOCABULARY)


def select_classes(
    classes: dict[int, VideoClass],
    *,
    drop_games: bool = True,
    drop_unnamed: bool = True,
    top_classes: int | None = None,
) -> list[VideoClass]:
    """Classes to keep, in the order of their Index.

    ``drop_games``: those with Games among their verticals (3,019 are left). ``top_classes``: of what is left only the
    most frequent in the training partition; 2,429 approximates the paper's subset, whose rule is not published.
    """
    kept = [
        c for c in classes.values() if not (drop_games and GAMES in c.verticals) and not (drop_unnamed and not c.name)
    ]
    if top_classes is not None:
        kept = sorted(kept, key=lambda c: (-c.num_train_videos, c.index))[:top_classes]
    return sorted(kept, key=lambda c: c.index)


def fill_names(classes: dict[int, VideoClass], path: Path) -> dict[int, VideoClass]:
    """Names for the unnamed from a CSV ``Index,...,name_from_category_list``; the others stay as they are."""
    filled = dict(classes)
    for row in read_csv(path, ("Index", "name_from_category_list")):
        index = row.integer("Index", high=NUM_CLASSES - 1)
        old = filled[index]
        if not old.name:
            name = row["name_from_category_list"].strip()
            filled[index] = VideoClass(index, old.entity, name, old.verticals, old.num_train_videos)
    return filled


def label_keys(kept: list[VideoClass]) -> dict[int, str]:
    """Index -> key: the name, or the knowledge-graph id where a name is missing or taken."""
    keys: dict[int, str] = {}
    taken: set[str] = set()
    for c in sorted(kept, key=lambda c: (not c.name, -c.num_train_videos)):
        keys[c.index] = c.name if c.name and c.name not in taken else c.entity
        taken.add(keys[c.index])
    return {index: keys[index] for index in sorted(keys)}


@dataclass(frozen=True)
class Segment:
    """Human ratings of one stretch of a video, seconds."""

    start: int
    positives: tuple[int, ...]
    negatives: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """What a TFRecord says of one video."""

    video: str
    labels: tuple[int, ...]
    split: str
    segments: tuple[Segment, ...] = field(default=())


def read_shard(path: Path) -> Iterator[Record]:
    """Videos of one shard, whose name says the split. Raises AnnotationError with the record's number as the line."""
    named = _SHARD.fullmatch(path.name)
    if named is None:
        raise AnnotationError(path, None, "the name says no split", "keep names such as train0093.tfrecord")
    split = SPLITS[named.group(1)]
    for number, payload in read_records(path):
        try:
            found = features(payload)
        except ValueError as error:
            raise AnnotationError(path, number, f"not an Example ({error})", _RECORDS) from None
        yield _record(path, number, found, split)


def _record(path: Path, number: int, found: dict[str, Value], split: str) -> Record:
    if "video_id" in found:
        raise AnnotationError(path, number, f"the key video_id belongs to {_OLD}", _RECORDS)
    names = [v for v in found.get("id", []) if isinstance(v, bytes)]
    if len(names) != 1:
        raise AnnotationError(path, number, "the record has no id", _RECORDS)
    labels = _integers(found, "labels")
    for label in labels:
        if not 0 <= label < NUM_CLASSES:
            raise AnnotationError(path, number, f"label {label}: {_OLD}", _RECORDS)
    return Record(names[0].decode("utf-8", "replace"), tuple(labels), split, _segments(path, number, found))


def _segments(path: Path, number: int, found: dict[str, Value]) -> tuple[Segment, ...]:
    labels, starts = _integers(found, "segment_labels"), _integers(found, "segment_start_times")
    scores = [float(v) for v in found.get("segment_scores", []) if not isinstance(v, bytes)]
    if not len(labels) == len(starts) == len(scores):
        problem = f"{len(labels)} segment labels, {len(starts)} starts and {len(scores)} scores"
        raise AnnotationError(path, number, problem, _RECORDS)
    by_start: dict[int, dict[int, bool]] = {}
    for label, start, score in zip(labels, starts, scores, strict=True):
        if not 0 <= label < NUM_CLASSES:
            raise AnnotationError(path, number, f"segment label {label}: {_OLD}", _RECORDS)
        rated = by_start.setdefault(start, {})
        rated[label] = rated.get(label, False) or score > 0
    return tuple(
        Segment(start, tuple(c for c, yes in rated.items() if yes), tuple(c for c, yes in rated.items() if not yes))
        for start, rated in sorted(by_start.items())
    )


def _integers(found: dict[str, Value], name: str) -> list[int]:
    return [v for v in found.get(name, []) if isinstance(v, int)]


def read_ids(path: Path) -> dict[str, str]:
    """``yt8m_id,youtube_id``: the 4-character keys of the records, resolved."""
    found: dict[str, str] = {}
    for row in read_csv(path, ("yt8m_id", "youtube_id")):
        _check_key(row)
        found[row["yt8m_id"]] = row.youtube_id("youtube_id")
    return found


def _check_key(row: Row) -> None:
    key = row["yt8m_id"]
    if not (len(key) == 4 and key.isascii() and key.isalnum()):
        raise row.error(f"yt8m_id is {key!r}, not 4 letters or digits", "read ids as text, case matters")


def build(
    *,
    vocabulary: Path,
    videos: Path,
    out: Path = Path("data/youtube8m"),
    records: Path | None = None,
    ids: Path | None = None,
    unnamed: Path | None = None,
    keep_games: bool = False,
    top_classes: int | None = None,
    segments: bool = False,
) -> dict[str, Any]:
    """YouTube-8M. ``vocabulary``: vocabulary.csv; ``records``: a folder of TFRecords (without it only the labels are
    written); ``ids``: a CSV yt8m_id,youtube_id, unless video files carry the 4-character keys. ``unnamed`` names the 56
    unnamed classes, which are dropped otherwise. ``top_classes`` 2429 approximates the paper's selection.
    ``segments`` takes the ratings of 2019 in place of the video labels.
    """
    classes = read_vocabulary(vocabulary)
    num_left = len(select_classes(classes, drop_games=not keep_games, drop_unnamed=False))
    if unnamed is not None:
        classes = fill_names(classes, unnamed)
    kept = select_classes(classes, drop_games=not keep_games, top_classes=top_classes)
    keys = label_keys(kept)
    files, youtube_ids = VideoFiles(videos), read_ids(ids) if ids is not None else {}
    entries: list[Entry] = []
    missing: list[str] = []
    counts = {
        "num_classes": len(classes),
        "num_without_games": num_left,
        "num_annotated_videos": 0,
        "num_unlabelled": 0,
    }
    for shard in sorted(records.rglob("*.tfrecord")) if records is not None else ():
        for record in read_shard(shard):
            counts["num_annotated_videos"] += 1
            described = _entries(record, keys, segments)
            if not described:
                counts["num_unlabelled"] += 1
                continue
            name = youtube_ids.get(record.video, record.video)
            path = files.find(name, record.video) or (files.find(f"v_{name}") if is_youtube_id(name) else None)
            if path is None:
                missing.append(record.video)
            else:
                entries += [Entry(relative(path, out), native_id=record.video, **part) for part in described]
    note = "absent labels are unknown (machine-made labels)"
    if top_classes is not None:
        note += f"; the {len(kept)} most frequent classes are an approximation of the paper's selection, not its list"
    sources = [path for path in (vocabulary, ids, unnamed) if path is not None]
    options = {"keep_games": keep_games, "top_classes": top_classes, "segments": segments}
    facts = DatasetFacts("youtube8m", options=options, counts=counts, note=note)
    by_index = {c.index: c for c in kept}
    labels = {key: LabelText(by_index[i].name, None, str(i)) for i, key in keys.items()}
    return write_dataset(out, entries, labels, missing, facts, sources=sources)


def _entries(record: Record, keys: dict[int, str], segments: bool) -> list[dict[str, Any]]:
    """The manifest's members of one video: one line for its labels, or one for each rated segment."""
    if not segments:
        positives = tuple(keys[c] for c in record.labels if c in keys)
        return [{"positives": positives, "split": record.split}] if positives else []
    return [
        {
            "positives": tuple(keys[c] for c in s.positives if c in keys),
            "negatives": tuple(keys[c] for c in s.negatives if c in keys),
            "split": record.split,
            "start_ms": s.start * 1000,
            "end_ms": (s.start + SEGMENT_SECONDS) * 1000,
        }
        for s in record.segments
        if any(c in keys for c in (*s.positives, *s.negatives))
    ]
