"""TAO (Tracking Any Object): tracks and, per video, the categories verified to be absent.

The federated protocol of TAO and LVIS: a category is judged only on the videos where it has a track or was verified
absent; otherwise it is unknown. A category in ``not_exhaustive_category_ids`` (not every instance is boxed) is never a
negative.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from vidlex.model.data.annotations import AnnotationError, read_json
from vidlex.model.data.dataset import SPLITS, DatasetInfo, LabelInfo, VideoFiles, relative_path, write_dataset
from vidlex.model.data.manifest import Entry

PROMPTS = {"baby": "person"}  # the synset of category 805 is person.n.01: its tracks are people of any age
_REMEDY = "take train.json or validation.json of github.com/TAO-Dataset/annotations, v1.2"


class _MergedCategory(BaseModel):
    id: int


class _Category(BaseModel):
    id: int
    name: str
    synset: str = "unknown"
    merged: list[_MergedCategory] = Field(default_factory=list)


class _Video(BaseModel):
    id: int
    name: str
    neg_category_ids: list[int]
    not_exhaustive_category_ids: list[int]


class _Track(BaseModel):
    category_id: int
    video_id: int


class _File(BaseModel):
    videos: list[_Video]
    categories: list[_Category]
    tracks: list[_Track] | None = None
    annotations: list[_Track] = Field(default_factory=list)


@dataclass(frozen=True)
class FederatedVideo:
    name: str
    split: str
    positives: frozenset[int]  # category ids after merging; those in neither set are unknown
    negatives: frozenset[int]


def read_videos(path: Path) -> tuple[list[FederatedVideo], dict[int, tuple[str, str]]]:
    """The videos, and id -> (name, synset) of all categories. Raises AnnotationError.

    Merged categories (mug -> cup) are replaced by their parents, also in the lists of a video.
    """
    file = read_json(path, _File, remedy=_REMEDY)
    parent = {child.id: category.id for category in file.categories for child in category.merged}
    known = {category.id for category in file.categories} | set(parent)
    positives: dict[int, set[int]] = {video.id: set() for video in file.videos}
    tracks = file.tracks if file.tracks is not None else file.annotations
    for track in tracks:
        if track.video_id not in positives or track.category_id not in known:
            problem = f"a track has video {track.video_id} and category {track.category_id}, one of which is unknown"
            raise AnnotationError(path, None, problem, _REMEDY)
        positives[track.video_id].add(parent.get(track.category_id, track.category_id))
    videos = []
    for video in file.videos:
        present = positives[video.id]
        not_exhaustive = {parent.get(i, i) for i in video.not_exhaustive_category_ids}
        absent = {parent.get(i, i) for i in video.neg_category_ids} - present - not_exhaustive
        if unknown := absent - known:
            raise AnnotationError(path, None, f"{video.name}: no category {min(unknown)}", _REMEDY)
        videos.append(FederatedVideo(video.name, _split(path, video.name), frozenset(present), frozenset(absent)))
    return videos, {c.id: (c.name, c.synset) for c in file.categories if c.id not in parent}


def _split(path: Path, name: str) -> str:
    split = name.partition("/")[0]
    if split not in SPLITS:
        raise AnnotationError(path, None, f"the video name {name!r} does not begin with its split", _REMEDY)
    return SPLITS[split]


def category_prompt(name: str) -> str:  # bow_(weapon) -> bow (weapon)
    return PROMPTS.get(name, name.replace("_", " "))


def build(*, annotations: Path, videos: Path, out: Path = Path("data/tao")) -> dict[str, Any]:
    """Write the manifest and the labels of TAO. Categories without a track are left out.

    Args:
        annotations: train.json or validation.json, or the same with freeform categories.
        videos: Folder of the videos under their TAO names, such as val/YFCC100M/v_....mp4.
        out: Folder of the manifest and the labels.
    """
    annotated, categories = read_videos(annotations)
    used = sorted({i for video in annotated for i in video.positives})
    num_uses = Counter(categories[i][0] for i in used)
    keys = {i: categories[i][0] if num_uses[categories[i][0]] == 1 else f"{categories[i][0]} #{i}" for i in used}
    files = VideoFiles(videos)
    entries: list[Entry] = []
    missing: list[str] = []
    for video in annotated:
        path = files.by_path.get(video.name) or files.by_path.get(f"videos/{video.name}")
        if path is None:
            missing.append(video.name)
            continue
        entries.append(
            Entry(
                relative_path(path, out),
                tuple(keys[i] for i in sorted(video.positives)),
                tuple(keys[i] for i in sorted(video.negatives) if i in keys),
                split=video.split,
                native_id=video.name,
            )
        )
    labels = {keys[i]: LabelInfo(category_prompt(categories[i][0]), "object", str(i)) for i in used}
    info = DatasetInfo(
        "tao",
        protocol="tao",
        counts={"num_categories": len(categories), "num_annotated_videos": len(annotated)},
        note="federated: a category counts only where it has a track or was verified absent",
    )
    return write_dataset(out, entries, labels, missing, info, sources=[annotations])
