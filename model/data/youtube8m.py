"""YouTube-8M (2018): vocabulary, video-level or frame-level TFRecords, and the human segment ratings of 2019.

The id of a label is the ``Index`` column, never the row number. Labels are machine-made: an unlisted label is unknown.
Segment ratings with score 0 are the only verified negatives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vidlex.model.data.annotations import AnnotationError, is_youtube_id, read_csv
from vidlex.model.data.dataset import SPLITS, DatasetInfo, LabelInfo, VideoFiles, relative_path, write_dataset
from vidlex.model.data.manifest import Entry
from vidlex.model.data.tfrecord import Value, parse_features, read_records

NUM_CLASSES = 3862
SEGMENT_SECONDS = 5
GAMES = "Games"
VERTICALS = ("Vertical1", "Vertical2", "Vertical3")
_COLUMNS = ("Index", "TrainVideoCount", "KnowledgeGraphId", "Name", *VERTICALS)
_VOCABULARY_REMEDY = (
    "take vocabulary.csv of the 2018 release (3,862 classes), research.google.com/youtube8m/download.html"
)
_RECORDS_REMEDY = "take the records of the 2018 release (folders 2/video, 2/frame, 3/frame)"
_OLD_NUMBERING = "the numbering of 2017 and before (4,716 classes), in which the same numbers mean other labels"
_SHARD_NAME = re.compile(r"(train|validate|test)[A-Za-z0-9_-]*\.tfrecord")


@dataclass(frozen=True)
class VideoClass:
    index: int
    entity: str  # knowledge-graph id, ``/m/...``
    name: str  # empty in 56 rows
    verticals: tuple[str, ...]
    num_train_videos: int


def read_vocabulary(path: Path) -> dict[int, VideoClass]:
    """All 3,862 classes by Index. Raises AnnotationError for any other list of labels."""
    _reject_label_names(path)
    classes: dict[int, VideoClass] = {}
    for row in read_csv(path, _COLUMNS, missing_column_remedy=_VOCABULARY_REMEDY):
        index = row.integer("Index")
        if index >= NUM_CLASSES:
            raise row.error(f"Index {index}: {_OLD_NUMBERING}", _VOCABULARY_REMEDY)
        if index in classes:
            raise row.error(f"duplicate Index {index}", _VOCABULARY_REMEDY)
        verticals = tuple(v for v in (row[column].strip() for column in VERTICALS) if v)
        classes[index] = VideoClass(
            index, row["KnowledgeGraphId"], row["Name"].strip(), verticals, row.integer("TrainVideoCount")
        )
    if len(classes) != NUM_CLASSES:
        problem = f"{len(classes)} classes, not {NUM_CLASSES} (the vocabulary of 2019 lists the 1,000 rated ones only)"
        raise AnnotationError(path, None, problem, _VOCABULARY_REMEDY)
    return classes


def _reject_label_names(path: Path) -> None:
    """A label_names_2018.csv has no verticals, and one version has the old numbering. Raises AnnotationError."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        header = file.readline(200).decode("utf-8", "replace").strip().lstrip("\ufeff")
        if header != "label_id,label_name":
            return
        for line, raw in enumerate(file, start=2):
            number = raw.split(b",", 1)[0].strip()
            if number.isdigit() and int(number) >= NUM_CLASSES:
                raise AnnotationError(path, line, f"label id {int(number)}: {_OLD_NUMBERING}", _VOCABULARY_REMEDY)
    raise AnnotationError(path, 1, "a list of names without verticals: games cannot be identified", _VOCABULARY_REMEDY)


def select_classes(
    classes: dict[int, VideoClass],
    *,
    drop_games: bool = True,
    drop_unnamed: bool = True,
    top_classes: int | None = None,
) -> list[VideoClass]:
    """In the order of their Index.

    ``drop_games`` drops the classes with the vertical Games (3,019 remain). ``top_classes`` then selects the most
    frequent ones of the training partition; 2,429 approximates the subset of the paper, whose rule is not published.
    """
    selected = [
        c for c in classes.values() if not (drop_games and GAMES in c.verticals) and not (drop_unnamed and not c.name)
    ]
    if top_classes is not None:
        selected = sorted(selected, key=lambda c: (-c.num_train_videos, c.index))[:top_classes]
    return sorted(selected, key=lambda c: c.index)


def fill_names(classes: dict[int, VideoClass], path: Path) -> dict[int, VideoClass]:
    filled = dict(classes)
    for row in read_csv(path, ("Index", "name_from_category_list")):
        index = row.integer("Index", high=NUM_CLASSES - 1)
        if not filled[index].name:
            filled[index] = replace(filled[index], name=row["name_from_category_list"].strip())
    return filled


def label_keys(classes: list[VideoClass]) -> dict[int, str]:
    """Index -> key: the name, or the knowledge-graph id if the name is missing or taken."""
    keys: dict[int, str] = {}
    taken: set[str] = set()
    for c in sorted(classes, key=lambda c: (not c.name, -c.num_train_videos)):
        keys[c.index] = c.name if c.name and c.name not in taken else c.entity
        taken.add(keys[c.index])
    return {index: keys[index] for index in sorted(keys)}


@dataclass(frozen=True)
class Segment:
    start_seconds: int  # ratings are of the ``SEGMENT_SECONDS`` from here
    positives: tuple[int, ...]
    negatives: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    video: str
    labels: tuple[int, ...]
    split: str
    segments: tuple[Segment, ...]


def read_shard(path: Path) -> Iterator[Record]:
    """Videos of one shard; its file name has the split. The line of an AnnotationError is the record's number."""
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None:
        raise AnnotationError(path, None, "the file name has no split", "keep names such as train0093.tfrecord")
    split = SPLITS[match.group(1)]
    for number, payload in read_records(path):
        try:
            features = parse_features(payload)
        except ValueError as error:
            raise AnnotationError(path, number, f"not an Example ({error})", _RECORDS_REMEDY) from None
        yield _record(path, number, features, split)


def _record(path: Path, number: int, features: dict[str, Value], split: str) -> Record:
    if "video_id" in features:
        raise AnnotationError(path, number, f"the key video_id belongs to {_OLD_NUMBERING}", _RECORDS_REMEDY)
    names = [v for v in features.get("id", []) if isinstance(v, bytes)]
    if len(names) != 1:
        raise AnnotationError(path, number, "the record has no id", _RECORDS_REMEDY)
    labels = _integers(features, "labels")
    for label in labels:
        if not 0 <= label < NUM_CLASSES:
            raise AnnotationError(path, number, f"label {label}: {_OLD_NUMBERING}", _RECORDS_REMEDY)
    return Record(names[0].decode("utf-8", "replace"), tuple(labels), split, _segments(path, number, features))


def _segments(path: Path, number: int, features: dict[str, Value]) -> tuple[Segment, ...]:
    labels, starts = _integers(features, "segment_labels"), _integers(features, "segment_start_times")
    scores = [float(v) for v in features.get("segment_scores", []) if not isinstance(v, bytes)]
    if not len(labels) == len(starts) == len(scores):
        problem = f"{len(labels)} segment labels, {len(starts)} starts and {len(scores)} scores"
        raise AnnotationError(path, number, problem, _RECORDS_REMEDY)
    by_start: dict[int, dict[int, bool]] = {}
    for label, start, score in zip(labels, starts, scores, strict=True):
        if not 0 <= label < NUM_CLASSES:
            raise AnnotationError(path, number, f"segment label {label}: {_OLD_NUMBERING}", _RECORDS_REMEDY)
        rated = by_start.setdefault(start, {})
        rated[label] = rated.get(label, False) or score > 0
    return tuple(
        Segment(
            start,
            tuple(label for label, is_present in rated.items() if is_present),
            tuple(label for label, is_present in rated.items() if not is_present),
        )
        for start, rated in sorted(by_start.items())
    )


def _integers(features: dict[str, Value], name: str) -> list[int]:
    return [v for v in features.get(name, []) if isinstance(v, int)]


def read_ids(path: Path) -> dict[str, str]:  # 4-character id of a record -> YouTube id
    ids: dict[str, str] = {}
    for row in read_csv(path, ("yt8m_id", "youtube_id")):
        key = row["yt8m_id"]
        if not (len(key) == 4 and key.isascii() and key.isalnum()):
            raise row.error(f"yt8m_id is {key!r}, not 4 letters or digits", "read ids as text, case matters")
        ids[key] = row.youtube_id("youtube_id")
    return ids


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
    """Write the manifest and the labels of YouTube-8M.

    Args:
        vocabulary: The file vocabulary.csv.
        videos: Folder of the videos, named by their 4-character ids, or by their YouTube ids with `--ids`.
        out: Folder of the manifest and the labels.
        records: Folder of the TFRecords; without it only the labels are written.
        ids: CSV file with the columns yt8m_id and youtube_id.
        unnamed: CSV file with names for the 56 unnamed classes, which are dropped otherwise.
        keep_games: Keep the classes of video games.
        top_classes: Number of the most frequent classes to use; 2429 approximates the selection of the paper.
        segments: Use the segment ratings of 2019 instead of the video labels.
    """
    classes = read_vocabulary(vocabulary)
    num_without_games = len(select_classes(classes, drop_games=not keep_games, drop_unnamed=False))
    if unnamed is not None:
        classes = fill_names(classes, unnamed)
    selected = select_classes(classes, drop_games=not keep_games, top_classes=top_classes)
    keys = label_keys(selected)
    files, youtube_ids = VideoFiles(videos), read_ids(ids) if ids is not None else {}
    entries: list[Entry] = []
    missing: list[str] = []
    counts = {
        "num_classes": len(classes),
        "num_without_games": num_without_games,
        "num_annotated_videos": 0,
        "num_unlabelled": 0,
    }
    for shard in sorted(records.rglob("*.tfrecord")) if records is not None else ():
        for record in read_shard(shard):
            counts["num_annotated_videos"] += 1
            entry_fields = _entry_fields(record, keys, segments)
            if not entry_fields:
                counts["num_unlabelled"] += 1
                continue
            name = youtube_ids.get(record.video, record.video)
            path = files.find(name, record.video) or (files.find(f"v_{name}") if is_youtube_id(name) else None)
            if path is None:
                missing.append(record.video)
            else:
                video = relative_path(path, out)
                entries += [Entry(video, native_id=record.video, **fields) for fields in entry_fields]
    note = "absent labels are unknown (machine-made labels)"
    if top_classes is not None:
        note += f"; the {len(selected)} most frequent classes approximate the selection of the paper"
    sources = [path for path in (vocabulary, ids, unnamed) if path is not None]
    options = {"keep_games": keep_games, "top_classes": top_classes, "segments": segments}
    info = DatasetInfo("youtube8m", options=options, counts=counts, note=note)
    by_index = {c.index: c for c in selected}
    labels = {key: LabelInfo(by_index[i].name, None, str(i)) for i, key in keys.items()}
    return write_dataset(out, entries, labels, missing, info, sources=sources)


def _entry_fields(record: Record, keys: dict[int, str], segments: bool) -> list[dict[str, Any]]:
    if not segments:
        positives = tuple(keys[c] for c in record.labels if c in keys)
        return [{"positives": positives, "split": record.split}] if positives else []
    return [
        {
            "positives": tuple(keys[c] for c in s.positives if c in keys),
            "negatives": tuple(keys[c] for c in s.negatives if c in keys),
            "split": record.split,
            "start_ms": s.start_seconds * 1000,
            "end_ms": (s.start_seconds + SEGMENT_SECONDS) * 1000,
        }
        for s in record.segments
        if any(c in keys for c in (*s.positives, *s.negatives))
    ]
