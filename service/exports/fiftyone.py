"""FiftyOne: a dataset of type ``FiftyOneTemporalDetectionDataset``, and corrections from such a dataset.

    labels.json  {"classes": [...], "labels": {video: [{"label", "support", "confidence", "attributes"}, ...]}}
    data.json    {video: path}, for those that are not absolute paths

(docs.voxel51.com, "FiftyOneTemporalDetectionDataset".) ``support`` is the first and the last frame, counted from 1.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vidlex.service.exports.corrections import Correction, NotCorrections, Predicted
from vidlex.service.exports.tagged import TaggedVideo

LABELS_FILE, DATA_FILE, FACTS_FILE = "labels.json", "data.json", "vidlex.json"
"""The last one is not FiftyOne's: which labels were predicted, for ``read_corrections``."""
_FILE_SCHEME = "file://"


def write_dataset(folder: Path, videos: Iterable[TaggedVideo]) -> None:
    """``folder`` is new or empty. Raises OSError."""
    classes: dict[str, None] = {}
    labels: dict[str, list[dict[str, Any]]] = {}
    paths: dict[str, str] = {}
    facts: dict[str, Any] = {}
    for video in videos:
        path = video.uri.removeprefix(_FILE_SCHEME)
        key = path if Path(path).is_absolute() else video.sha256
        paths[key] = path
        labels[key] = list(_detections(video))
        classes.update(dict.fromkeys(label.name for label in video.labels))
        facts[key] = {"path": path, "fps": video.fps, **vars(Predicted.of(video))}
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / LABELS_FILE, {"classes": sorted(classes), "labels": labels})
    _write(folder / DATA_FILE, paths)
    _write(folder / FACTS_FILE, facts)


def _detections(video: TaggedVideo) -> Iterator[dict[str, Any]]:
    for label in video.matched:
        for stretch in video.stretches(label):
            yield {
                "label": label.name,
                "support": list(video.frames(stretch)),
                "confidence": stretch.score,
                "attributes": {"video_score": label.score},
            }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def read_corrections(folder: Path) -> Iterator[Correction]:
    """Of a dataset that was written by ``write_dataset`` and exported again by FiftyOne, with ``vidlex.json`` in it.

    A predicted label without a detection is wrong. Raises NotCorrections, OSError.
    """
    try:
        exported = json.loads((folder / LABELS_FILE).read_text(encoding="utf-8"))["labels"]
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        for known, detections in _pairs(facts, exported):
            yield from _corrections(Predicted.from_json(known), float(known["fps"]), detections)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotCorrections(f"{folder.name}: {type(error).__name__}: {error}") from error


def _pairs(facts: Mapping[str, Any], exported: Mapping[str, Any]) -> Iterator[tuple[Any, list[Any]]]:
    """FiftyOne names an exported video by its path, or by the name of its file without the suffix."""
    stems = Counter(Path(known["path"]).stem for known in facts.values())
    for key, known in facts.items():
        stem = Path(known["path"]).stem
        names = [key, known["path"], *([stem] if stems[stem] == 1 else [])]
        found = next((name for name in names if name in exported), None)
        if found is not None:
            yield known, list(exported[found] or ())


def _corrections(predicted: Predicted, fps: float, detections: list[Any]) -> Iterator[Correction]:
    yield from predicted.judge_all(str(detection["label"]) for detection in detections)
    for detection in detections:
        times = _times(detection, fps)
        if times is not None:
            yield predicted.judge(str(detection["label"]), True, *times)


def _times(detection: Mapping[str, Any], fps: float) -> tuple[int, int] | None:
    if "timestamps" in detection:
        start, end = (float(seconds) for seconds in detection["timestamps"])
        return round(1000 * start), round(1000 * end)
    if "support" in detection and fps > 0:
        first, last = (int(frame) for frame in detection["support"])
        return round((first - 1) * 1000 / fps), round(last * 1000 / fps)
    return None
