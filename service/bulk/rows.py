"""TagResult <-> row of a table. One row per video; its segments are nested in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vidlex.service.bulk.results import (
    Receipt,
    Stretch,
    TagFailure,
    TaggedLabel,
    TaggedSegment,
    TagResult,
    VideoFacts,
)

if TYPE_CHECKING:
    import pyarrow as pa

TIMINGS = ("fetch", "decode", "queue", "encode", "match")
"""Keys of ``TagResult.timings_ms``; others are not kept."""

Row = dict[str, Any]


def schema() -> pa.Schema:
    """Nullable throughout. Labels and segments are lists of structs, metadata a map of texts."""
    import pyarrow as pa

    text, integer, number = pa.string(), pa.int64(), pa.float64()
    return pa.schema(
        {
            "uri": text,
            "id": text,
            "result_id": text,
            "sha256": text,
            "num_bytes": integer,
            "file_version": text,
            "duration_ms": integer,
            "start_ms": integer,
            "width": pa.int32(),
            "height": pa.int32(),
            "fps": number,
            "codec": text,
            "matched": pa.list_(text),
            "labels": _labels(pa),
            "segments": pa.list_(_segment(pa)),
            "model_fingerprint": text,
            "vocabulary_revision": integer,
            "receipt": _struct(
                pa,
                decoder=text,
                encoder=text,
                model_id=text,
                fingerprint=text,
                calibration=text,
                vocabulary=text,
                vocabulary_revision=integer,
                frame_policy=text,
                frames_decoded=integer,
                frames_failed=integer,
            ),
            "warnings": pa.list_(_struct(pa, code=text, detail=text)),
            "error_code": text,
            "error_detail": text,
            "timings_ms": _struct(pa, **dict.fromkeys(TIMINGS, number)),
            "metadata": pa.map_(text, text),
        }
    )


def segment_schema() -> pa.Schema:
    """One row per segment: for vector search and for users who do not want nested columns."""
    import pyarrow as pa

    text, integer = pa.string(), pa.int64()
    return pa.schema(
        {
            "uri": text,
            "id": text,
            "result_id": text,
            "sha256": text,
            "model_fingerprint": text,
            "segment": pa.int32(),
            "start_ms": integer,
            "end_ms": integer,
            "matched": pa.list_(text),
            "labels": _labels(pa),
            "features": pa.list_(pa.float32()),
        }
    )


def _struct(pa: Any, **members: Any) -> Any:
    return pa.struct(list(members.items()))


def _labels(pa: Any) -> Any:
    stretch = _struct(pa, start_ms=pa.int64(), end_ms=pa.int64(), peak_ms=pa.int64(), score=pa.float64())
    return pa.list_(
        _struct(
            pa,
            id=pa.string(),
            name=pa.string(),
            score=pa.float64(),
            threshold=pa.float64(),
            matched=pa.bool_(),
            stretches=pa.list_(stretch),
        )
    )


def _segment(pa: Any) -> Any:
    return _struct(pa, start_ms=pa.int64(), end_ms=pa.int64(), labels=_labels(pa), features=pa.list_(pa.float32()))


def row_of(result: TagResult, file_version: str | None = None) -> Row:
    video, receipt, failure = result.video, result.receipt, result.failure
    return {
        "uri": result.uri,
        "id": result.client_id,
        "result_id": result.result_id,
        "sha256": result.sha256,
        "num_bytes": result.num_bytes,
        "file_version": file_version,
        **{name: getattr(video, name) if video else None for name in VideoFacts.__slots__},
        "matched": None if failure else [label.name for label in result.matched],
        "labels": None if failure else [_label_row(label) for label in result.labels],
        "segments": [_segment_row(segment) for segment in result.segments] or None,
        "model_fingerprint": receipt.fingerprint if receipt else None,
        "vocabulary_revision": receipt.vocabulary_revision if receipt else None,
        "receipt": {name: getattr(receipt, name) for name in Receipt.__slots__} if receipt else None,
        "warnings": [{"code": code, "detail": detail} for code, detail in result.warnings],
        "error_code": failure.code if failure else None,
        "error_detail": failure.detail if failure else None,
        "timings_ms": {name: result.timings_ms.get(name) for name in TIMINGS},
        "metadata": dict(result.metadata),
    }


def result_of(row: Mapping[str, Any]) -> TagResult:
    """The reverse of ``row_of``. Columns that a row lacks count as empty."""
    failed = row.get("error_code") is not None
    return TagResult(
        uri=row["uri"],
        result_id=row.get("result_id"),
        client_id=row.get("id"),
        sha256=row.get("sha256"),
        num_bytes=row.get("num_bytes"),
        video=_video(row),
        labels=[_label(label) for label in row.get("labels") or ()],
        segments=[_tagged_segment(segment) for segment in row.get("segments") or ()],
        receipt=Receipt(**row["receipt"]) if row.get("receipt") else None,
        warnings=[(warning["code"], warning["detail"]) for warning in row.get("warnings") or ()],
        timings_ms={key: value for key, value in (row.get("timings_ms") or {}).items() if value is not None},
        failure=TagFailure(row["error_code"], row.get("error_detail") or "") if failed else None,
        metadata=dict(row.get("metadata") or {}),
    )


def table_of(rows: Iterable[Row], of: pa.Schema | None = None) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist([_with_pairs(row) for row in rows], schema=of or schema())


def rows_of(table: pa.Table) -> Iterator[Row]:
    for row in table.to_pylist():
        if isinstance(row.get("metadata"), list):
            row["metadata"] = dict(row["metadata"])
        yield row


def segment_rows(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        for number, segment in enumerate(row["segments"] or ()):
            labels = segment["labels"] or []
            yield {
                **{name: row[name] for name in ("uri", "id", "result_id", "sha256", "model_fingerprint")},
                "segment": number,
                **segment,
                "matched": [label["name"] for label in labels if label["matched"]],
            }


def _with_pairs(row: Row) -> Row:
    metadata = row.get("metadata")
    return {**row, "metadata": list(metadata.items())} if isinstance(metadata, dict) else row


def _label_row(label: TaggedLabel) -> Row:
    return {
        "id": label.id,
        "name": label.name,
        "score": label.score,
        "threshold": label.threshold,
        "matched": label.matched,
        "stretches": [{name: getattr(stretch, name) for name in Stretch.__slots__} for stretch in label.stretches],
    }


def _segment_row(segment: TaggedSegment) -> Row:
    return {
        "start_ms": segment.start_ms,
        "end_ms": segment.end_ms,
        "labels": [_label_row(label) for label in segment.labels],
        "features": segment.features,
    }


def _label(row: Mapping[str, Any]) -> TaggedLabel:
    stretches: Sequence[Stretch] = [Stretch(**stretch) for stretch in row["stretches"] or ()]
    return TaggedLabel(row["id"], row["name"], row["score"], row["threshold"], row["matched"], stretches)


def _tagged_segment(row: Mapping[str, Any]) -> TaggedSegment:
    labels = [_label(label) for label in row["labels"] or ()]
    return TaggedSegment(row["start_ms"], row["end_ms"], labels, row["features"] or None)


def _video(row: Mapping[str, Any]) -> VideoFacts | None:
    if row.get("duration_ms") is None:
        return None
    return VideoFacts(**{name: row[name] for name in VideoFacts.__slots__})
