"""Kinetics-400: CSV lists of ten-second clips with one label each.

The list knows one action per clip; the other 399 are absent by custom, not verified. Clip files
(``<id>_<start>_<end>.mp4``, six digits each) are already cut; of whole videos, named by their id, the list's
times are taken.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from vidlex.model.data.annotations import AnnotationError, Row, read_csv
from vidlex.model.data.dataset import SPLITS, DatasetFacts, LabelText, VideoFiles, relative, write_dataset
from vidlex.model.data.manifest import Entry

_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
_NO_LABEL = (
    "test lists of the crawler repository carry no labels; take train.csv or val.csv, or the test.csv of the CVDF "
    "mirror, with the columns label,youtube_id,time_start,time_end,split"
)
_CLIP = re.compile(r"(.{11})_(\d{6})_(\d{6})")
Files = Literal["auto", "clips", "sources"]


def class_names(rows: list[Row]) -> list[str]:
    """Labels in their standard order: sorted as Python sorts text."""
    return sorted({row["label"] for row in rows})


def build(
    *,
    annotations: tuple[Path, ...],
    videos: Path,
    out: Path = Path("data/kinetics"),
    files: Files = "auto",
    num_classes: int = 400,
) -> dict[str, Any]:
    """Kinetics-400. ``annotations``: one or several CSV lists. ``files``: what a video file named by the id alone is, a
    cut clip or the whole source; auto takes it for the source. ``num_classes`` is checked; 0 takes any.
    """
    rows = [row for path in annotations for row in read_csv(path, _COLUMNS, missing_column=_NO_LABEL)]
    if not rows:
        raise AnnotationError(annotations[0] if annotations else Path(), None, "no clips", "give a list of clips")
    names = class_names(rows)
    if num_classes and len(names) != num_classes:
        remedy = "give the whole list of Kinetics-400, or --num-classes 0 to take any"
        raise AnnotationError(annotations[0], None, f"{len(names)} classes, not {num_classes}", remedy)
    found = VideoFiles(videos)
    clip_of = _clips_by_id(found)
    entries: list[Entry] = []
    missing: list[str] = []
    for row in rows:
        name, split = row.youtube_id("youtube_id"), _split(row)
        start = row.integer("time_start", high=999_999)
        end = row.integer("time_end", low=start + 1, high=999_999)
        clip = f"{name}_{start:06d}_{end:06d}"
        path = found.find(clip)
        is_clip = path is not None or files == "clips"
        if path is None:
            path = found.find(name)
        if path is None:  # the mirror's replacements are matched by id alone
            path, is_clip = clip_of.get(name), True
        if path is None:
            missing.append(clip)
            continue
        window = (None, None) if is_clip else (1000 * start, 1000 * end)
        entries.append(
            Entry(
                relative(path, out),
                (row["label"],),
                split=split,
                start_ms=window[0],
                end_ms=window[1],
                native_id=clip,
            )
        )
    labels = {name: LabelText(name, "action", str(index)) for index, name in enumerate(names)}
    facts = DatasetFacts(
        "kinetics",
        unlabelled="absent",
        options={"files": files},
        counts={"num_annotated_clips": len(rows)},
        note="one label per clip; the others count as absent by custom",
    )
    return write_dataset(out, entries, labels, missing, facts, sources=annotations)


def _split(row: Row) -> str:
    if row["split"] not in SPLITS:
        raise row.error(f"unknown split {row['split']!r}", f"one of {', '.join(SPLITS)}")
    if not row["label"].strip():
        raise row.error("the label is empty", _NO_LABEL)
    return SPLITS[row["split"]]


def _clips_by_id(found: VideoFiles) -> dict[str, Path]:
    clips: dict[str, Path] = {}
    for stem, path in found.by_stem.items():
        if match := _CLIP.fullmatch(stem):
            clips.setdefault(match.group(1), path)
    return clips
