"""CSV: a row per stretch of a matched label, and corrections in such a file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from vidlex.service.bulk.csv_cells import guarded, unguarded
from vidlex.service.exports.corrections import Correction, NotCorrections
from vidlex.service.exports.tagged import TaggedVideo

COLUMNS = (
    "uri",
    "sha256",
    "video_id",
    "label",
    "label_id",
    "score",
    "start_ms",
    "end_ms",
    "stretch_score",
    "fingerprint",
    "calibration",
)
RIGHT = "right"
"""A column that people add to judge the label of a row: yes or no."""
_YES, _NO = frozenset({"1", "true", "yes", "y", "right"}), frozenset({"0", "false", "no", "n", "wrong"})


def write_rows(file: TextIO, videos: Iterable[TaggedVideo]) -> None:
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for video in videos:
        for label in video.matched:
            for stretch in video.stretches(label):
                row = (
                    video.uri,
                    video.sha256,
                    video.video_id,
                    label.name,
                    label.id,
                    label.score,
                    stretch.start_ms,
                    stretch.end_ms,
                    stretch.score,
                    video.fingerprint,
                    video.calibration,
                )
                writer.writerow(map(_cell, row))


def read_corrections(file: TextIO) -> Iterator[Correction]:
    """Of the rows in which the column ``right`` is filled in. Raises NotCorrections.

    A row judges the whole video if its stretch was emptied, or if it is the only row of its video and label.
    """
    try:
        reader = csv.DictReader(file, strict=True)
        if reader.fieldnames is None or not {"label", RIGHT} <= set(reader.fieldnames):
            raise NotCorrections("the columns label and right are required")
        rows = [{name: _text(cell) for name, cell in row.items()} for row in reader]
    except csv.Error as error:
        raise NotCorrections("this is no CSV") from error
    rows_of: dict[tuple[str, ...], int] = {}
    for row in rows:
        rows_of[_video_and_label(row)] = rows_of.get(_video_and_label(row), 0) + 1
    for number, row in enumerate(rows, 2):
        answer = row.get(RIGHT, "").strip().lower()
        if answer:
            yield _correction(row, answer, number, is_only=rows_of[_video_and_label(row)] == 1)


def _correction(row: dict[str, str], answer: str, number: int, *, is_only: bool) -> Correction:
    if answer not in _YES | _NO:
        raise NotCorrections(f"line {number}: right is yes or no")
    if not (row.get("video_id") or row.get("sha256")) or not row["label"]:
        raise NotCorrections(f"line {number}: video_id or sha256 is required, and label")
    try:
        times = [int(row[name]) if row.get(name) else None for name in ("start_ms", "end_ms")]
        score = float(row["score"]) if row.get("score") else None
    except ValueError as error:
        raise NotCorrections(f"line {number}: start_ms, end_ms and score are numbers") from error
    start_ms, end_ms = (None, None) if is_only or None in times else times
    if start_ms is not None:
        score = None  # it is that of the video
    return Correction(
        name=row["label"],
        right=answer in _YES,
        video_id=row.get("video_id") or None,
        sha256=row.get("sha256") or None,
        label_id=row.get("label_id") or None,
        start_ms=start_ms,
        end_ms=end_ms,
        score=score,
        fingerprint=(row.get("fingerprint") or None) if score is not None else None,
        calibration=(row.get("calibration") or None) if score is not None else None,
    )


def _video_and_label(row: dict[str, str]) -> tuple[str, ...]:
    return row.get("video_id", ""), row.get("sha256", ""), row["label"]


def _cell(value: Any) -> Any:
    return guarded(value) if isinstance(value, str) else value


def _text(cell: Any) -> str:
    return unguarded(cell) if isinstance(cell, str) else ""
