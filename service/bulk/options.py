"""How videos are sampled and what is kept of their scores."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, TypedDict

from vidlex.service.errors import InvalidParameter

FramePolicyName = Literal["uniform", "keyframes", "shots"]

# Members that change what is written of a video, but not which frames are used or how they are scored, count too: a
# result with other members is another result.


@dataclass(frozen=True, kw_only=True)
class TagOptions:
    """The meanings and defaults are those of the options of ``POST /classify``."""

    top_k: int = 20  # 0: all
    min_score: float = 0.0
    num_frames: int | None = None
    frame_policy: FramePolicyName | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    segments: bool = False  # scores of each segment too
    segment_ms: int = 4000
    features: bool = False  # the vectors of the video's segments too
    keep: bool = False  # the service keeps the features, under the source's own id and metadata

    @property
    def digest_text(self) -> str:
        """Stable: part of a result's id."""
        members = asdict(self)
        if not self.keep:
            del members["keep"]  # results from before this option stay known
        return json.dumps(members, sort_keys=True, separators=(",", ":"))

    def check(self) -> None:
        """By the bounds of ``POST /classify``. Raises InvalidParameter."""
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            kinds = (int, float) if name == "min_score" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                raise InvalidParameter(f"{name} must be from {low} to {high}")
        if self.frame_policy not in (None, "uniform", "keyframes", "shots"):
            raise InvalidParameter("frame_policy must be uniform, keyframes or shots")
        if self.end_ms is not None and self.end_ms <= (self.start_ms or 0):
            raise InvalidParameter("end_ms must be greater than start_ms")


_BOUNDS = (
    ("top_k", 0, 1_000_000),
    ("min_score", 0, 1),
    ("num_frames", 1, 2048),
    ("start_ms", 0, 2**53),
    ("end_ms", 0, 2**53),
    ("segment_ms", 100, 3_600_000),
)
_OPTIONAL = ("num_frames", "start_ms", "end_ms")


class TagOptionValues(TypedDict, total=False):
    """The members of ``TagOptions``, as arguments by name."""

    top_k: int
    min_score: float
    num_frames: int | None
    frame_policy: FramePolicyName | None
    start_ms: int | None
    end_ms: int | None
    segments: bool
    segment_ms: int
    features: bool
    keep: bool
