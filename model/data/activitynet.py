"""ActivityNet 1.3: 200 activities with their times in untrimmed videos.

Two formats are read: the official ``activity_net.v1-3.min.json`` and the BSN format of mmaction2
(``anet_anno_action.json`` with ``video_info_new.csv``). Unlabelled activities count as absent by convention; the
annotators did not verify it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, RootModel

from vidlex.model.data.annotations import AnnotationError, read_csv, read_json, read_text
from vidlex.model.data.dataset import SPLITS, DatasetInfo, LabelInfo, VideoFiles, relative_path, write_dataset
from vidlex.model.data.manifest import Entry

NUM_CLASSES = 200
PROMPTS = {"Mooping floor": "Mopping floor"}  # the official key is misspelt
_REMEDY = "take activity_net.v1-3.min.json from activity-net.org/download.html"
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Level = Literal["video", "segment"]


class _Annotation(BaseModel):
    label: str
    segment: tuple[Seconds, Seconds]


class _OfficialVideo(BaseModel):
    duration: Seconds
    subset: Literal["training", "validation", "testing"]
    annotations: list[_Annotation]


class _OfficialFile(BaseModel):
    database: dict[str, _OfficialVideo]


class _BsnVideo(BaseModel):
    duration_second: Seconds
    annotations: list[_Annotation]


class _BsnFile(RootModel[dict[str, _BsnVideo]]):
    pass


@dataclass(frozen=True)
class AnnotatedVideo:
    name: str
    duration: float  # seconds
    split: str
    segments: tuple[tuple[str, float, float], ...]  # label, start and end in seconds; none ends after ``duration``

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({label for label, _, _ in self.segments}))


def read_videos(path: Path, info: Path | None = None) -> list[AnnotatedVideo]:
    """Read either format; the BSN format needs ``info`` for the subsets. Raises AnnotationError."""
    if '"database"' in read_text(path)[:1_000_000]:
        official = read_json(path, _OfficialFile, remedy=_REMEDY).database
        return [_video(name, v.duration, SPLITS[v.subset], v.annotations) for name, v in official.items()]
    bsn = read_json(path, _BsnFile, remedy=_REMEDY).root
    if info is None:
        remedy = "give the official file, or --info video_info_new.csv with the BSN file"
        raise AnnotationError(path, 1, "the BSN format does not contain the subsets", remedy)
    subsets = {row["video"]: row["subset"] for row in read_csv(info, ("video", "subset"))}
    videos = []
    for name, video in bsn.items():
        if subsets.get(name) not in SPLITS:
            raise AnnotationError(info, None, f"no subset for {name}", "take the info file of the same release")
        split = SPLITS[subsets[name]]
        videos.append(_video(name.removeprefix("v_"), video.duration_second, split, video.annotations))
    return videos


def _video(name: str, duration: float, split: str, annotations: list[_Annotation]) -> AnnotatedVideo:
    # Some published segments end up to a second after the video: they are clamped.
    segments = tuple((a.label, min(a.segment[0], duration), min(a.segment[1], duration)) for a in annotations)
    return AnnotatedVideo(name, duration, split, segments)


def build(
    *,
    annotations: Path,
    videos: Path,
    out: Path = Path("data/activitynet"),
    info: Path | None = None,
    level: Level = "video",
    num_classes: int = NUM_CLASSES,
) -> dict[str, Any]:
    """Write the manifest and the labels of ActivityNet 1.3.

    Args:
        annotations: The official JSON file, or that of BSN together with `--info`.
        videos: Folder of the videos.
        out: Folder of the manifest and the labels.
        info: BSN's CSV file of the videos.
        level: One entry per video, or one per annotated segment.
        num_classes: Expected number of classes; 0 disables the check.
    """
    annotated = read_videos(annotations, info)
    names = sorted({label for video in annotated for label in video.labels})
    if num_classes and len(names) != num_classes:
        raise AnnotationError(annotations, None, f"{len(names)} activities, not {num_classes}", _REMEDY)
    files = VideoFiles(videos)
    entries: list[Entry] = []
    missing: list[str] = []
    counts = {"num_annotated_videos": len(annotated), "num_unlabelled": 0}
    for video in annotated:
        if not video.segments:
            counts["num_unlabelled"] += 1  # the labels of the testing subset are not published
            continue
        path = files.find(f"v_{video.name}", video.name)
        if path is None:
            missing.append(video.name)
        else:
            entries += _entries(video, relative_path(path, out), level)
    dataset = DatasetInfo(
        "activitynet",
        unlabelled="absent",
        options={"level": level},
        counts=counts,
        note="unlabelled activities count as absent by convention",
    )
    sources = [annotations] if info is None else [annotations, info]
    labels = {name: LabelInfo(PROMPTS.get(name, name), "action", name) for name in names}
    return write_dataset(out, entries, labels, missing, dataset, sources=sources)


def _entries(video: AnnotatedVideo, path: str, level: Level) -> Iterator[Entry]:
    if level == "video":
        yield Entry(path, video.labels, split=video.split, native_id=video.name)
        return
    for label, start, end in video.segments:
        start_ms, end_ms = round(1000 * start), round(1000 * end)
        if start_ms < end_ms:
            yield Entry(path, (label,), split=video.split, start_ms=start_ms, end_ms=end_ms, native_id=video.name)
