"""How videos are sampled and what is kept of their scores."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

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

    @property
    def digest_text(self) -> str:
        """Stable: part of a result's id."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
