"""Kinetics-400: CSV lists of ten-second segments ("clips") with one label each.

The other 399 labels count as absent by convention; the annotators did not verify it. Files named
``<id>_<start>_<end>`` (six digits each) are trimmed to the segment. For whole videos, named by their id, the entry has
the segment's times.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from vidlex.model.data.annotations import AnnotationError, Row, read_csv
from vidlex.model.data.dataset import SPLITS, DatasetInfo, LabelInfo, VideoFiles, relative_path, write_dataset
from vidlex.model.data.manifest import Entry

_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
_NO_LABEL_REMEDY = (
    "test lists of the crawler repository carry no labels; take train.csv or val.csv, or the test.csv of the CVDF "
    "mirror, with the columns label,youtube_id,time_start,time_end,split"
)
_TRIMMED_NAME = re.compile(r"(.{11})_(\d{6})_(\d{6})")
Files = Literal["auto", "clips", "sources"]


def build(
    *,
    annotations: tuple[Path, ...],
    videos: Path,
    out: Path = Path("data/kinetics"),
    files: Files = "auto",
    num_classes: int = 400,
) -> dict[str, Any]:
    """Write the manifest and the labels of Kinetics-400.

    Args:
        annotations: CSV list of clips; at least one.
        videos: Folder of the videos.
        out: Folder of the manifest and the labels.
        files: Whether a video that is named by its id alone is trimmed (clips) or whole (sources, auto).
        num_classes: Expected number of classes; 0 disables the check.
    """
    rows = [row for path in annotations for row in read_csv(path, _COLUMNS, missing_column_remedy=_NO_LABEL_REMEDY)]
    if not rows:
        raise AnnotationError(annotations[0] if annotations else Path(), None, "no rows", "give a list of clips")
    names = sorted({row["label"] for row in rows})  # the standard order of the classes
    if num_classes and len(names) != num_classes:
        remedy = "give the whole list of Kinetics-400, or --num-classes 0 to take any"
        raise AnnotationError(annotations[0], None, f"{len(names)} classes, not {num_classes}", remedy)
    video_files = VideoFiles(videos)
    trimmed_files = _trimmed_files_by_id(video_files)
    entries: list[Entry] = []
    missing: list[str] = []
    for row in rows:
        youtube_id, split = row.youtube_id("youtube_id"), _split(row)
        start = row.integer("time_start", high=999_999)
        end = row.integer("time_end", low=start + 1, high=999_999)
        native_id = f"{youtube_id}_{start:06d}_{end:06d}"
        path = video_files.find(native_id)
        is_trimmed = path is not None or files == "clips"
        if path is None:
            path = video_files.find(youtube_id)
        if path is None:  # the replacements of the mirror have other times
            path, is_trimmed = trimmed_files.get(youtube_id), True
        if path is None:
            missing.append(native_id)
            continue
        entries.append(
            Entry(
                relative_path(path, out),
                (row["label"],),
                split=split,
                start_ms=None if is_trimmed else 1000 * start,
                end_ms=None if is_trimmed else 1000 * end,
                native_id=native_id,
            )
        )
    labels = {name: LabelInfo(name, "action", str(index)) for index, name in enumerate(names)}
    info = DatasetInfo(
        "kinetics",
        unlabelled="absent",
        options={"files": files},
        counts={"num_annotated_clips": len(rows)},
        note="one label per clip; the others count as absent by convention",
    )
    return write_dataset(out, entries, labels, missing, info, sources=annotations)


def _split(row: Row) -> str:
    if row["split"] not in SPLITS:
        raise row.error(f"unknown split {row['split']!r}", f"one of {', '.join(SPLITS)}")
    if not row["label"].strip():
        raise row.error("the label is empty", _NO_LABEL_REMEDY)
    return SPLITS[row["split"]]


def _trimmed_files_by_id(files: VideoFiles) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for stem, path in files.by_stem.items():
        if match := _TRIMMED_NAME.fullmatch(stem):
            paths.setdefault(match.group(1), path)
    return paths
