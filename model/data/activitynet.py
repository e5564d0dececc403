"""ActivityNet 1.3: 200 activities with their times in untrimmed videos.

Read are the official ``activity_net.v1-3.min.json`` and the form derived by BSN and used by mmaction2
(``anet_anno_action.json`` with ``video_info_new.csv``). Labels come from class-wise search; what is not named counts
as absent by custom only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, RootModel

from vidlex.model.data.annotations import AnnotationError, read_csv, read_json, read_text
from vidlex.model.data.dataset import SPLITS, DatasetFacts, LabelText, VideoFiles, relative, write_dataset
from vidlex.model.data.manifest import Entry

NUM_CLASSES = 200
PROMPTS = {"Mooping floor": "Mopping floor"}
"""The official key is misspelt; an encoder reads the right word."""
_REMEDY = "take activity_net.v1-3.min.json from activity-net.org/download.html"
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Level = Literal["video", "segment"]


class _Annotation(BaseModel):
    label: str
    segment: tuple[Seconds, Seconds]


class _Video(BaseModel):
    duration: Seconds
    subset: Literal["training", "validation", "testing"]
    annotations: list[_Annotation]


class _Official(BaseModel):
    database: dict[str, _Video]


class _DerivedVideo(BaseModel):
    duration_second: Seconds
    annotations: list[_Annotation]


class _Derived(RootModel[dict[str, _DerivedVideo]]):
    pass


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video of either form; segments in seconds, ends not behind the duration."""

    name: str
    duration: float
    split: str
    segments: tuple[tuple[str, float, float], ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Distinct labels, sorted. An empty segment still names its label."""
        return tuple(sorted({label for label, _, _ in self.segments}))


def read_videos(path: Path, info: Path | None = None) -> list[AnnotatedVideo]:
    """All videos of an annotation file. The derived form needs ``info`` for the subsets. Raises AnnotationError."""
    if '"database"' in read_text(path)[:1_000_000]:
        official = read_json(path, _Official, remedy=_REMEDY).database
        return [_video(name, v.duration, SPLITS[v.subset], v.annotations) for name, v in official.items()]
    derived = read_json(path, _Derived, remedy=_REMEDY).root
    if info is None:
        remedy = "give the official file, or --info video_info_new.csv beside the derived one"
        raise AnnotationError(path, 1, "the derived form, which does not say the subsets", remedy)
    subset = {row["video"]: row["subset"] for row in read_csv(info, ("video", "subset"))}
    found = []
    for name, video in derived.items():
        if subset.get(name) not in SPLITS:
            raise AnnotationError(info, None, f"no subset for {name}", "take the info file of the same release")
        bare = name.removeprefix("v_")
        found.append(_video(bare, video.duration_second, SPLITS[subset[name]], video.annotations))
    return found


def _video(name: str, duration: float, split: str, annotations: list[_Annotation]) -> AnnotatedVideo:
    """Some ends lie up to a second behind the duration: they are set to it."""
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
    """ActivityNet 1.3. ``annotations``: the official JSON, or the derived one with ``info``. ``level``: one line per
    video, or one per annotated segment. ``num_classes`` is checked; 0 takes any.
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
            counts["num_unlabelled"] += 1  # the testing subset's labels are withheld
            continue
        path = files.find(f"v_{video.name}", video.name)
        if path is None:
            missing.append(video.name)
        else:
            entries += _entries(video, relative(path, out), level)
    facts = DatasetFacts(
        "activitynet",
        unlabelled="absent",
        options={"level": level},
        counts=counts,
        note="labels that are not named count as absent by custom",
    )
    sources = [annotations] if info is None else [annotations, info]
    labels = {name: LabelText(PROMPTS.get(name, name), "action", name) for name in names}
    return write_dataset(out, entries, labels, missing, facts, sources=sources)


def _entries(video: AnnotatedVideo, path: str, level: Level) -> Iterator[Entry]:
    if level == "video":
        yield Entry(path, video.labels, split=video.split, native_id=video.name)
        return
    for label, start, end in video.segments:
        window = (round(1000 * start), round(1000 * end))
        if window[0] < window[1]:
            yield Entry(path, (label,), split=video.split, start_ms=window[0], end_ms=window[1], native_id=video.name)
