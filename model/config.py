"""Configurations: frozen dataclasses that say everything a set of weights needs to be rebuilt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Feedback = Literal["greedy", "soft"]
Method = Literal["ours", "class_name", "fixed_llm", "coop", "dualcoop", "vificlip"]
"""The paper's method, and what it is compared with."""
TemplateSet = Literal["name", "photo", "default", "imagenet", "video"]


def fingerprint(*parts: Any) -> str:
    """16 hex digits over JSON-like values, the same in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class VideoEncoderConfig:
    """The video encoder: how many blocks of a temporal branch run beside the frozen image tower."""

    num_branch_blocks: int = 4
    """Beside the tower's last blocks; 0 is the plain mean of the frame features."""
    num_frames: int = 8
    """Frames per video in training, and by default when serving."""
    tmp_weight: float = 0.5
    """Weight of the temporal token against the mean of the frames' CLS features at the start (learned from there)."""

    def __post_init__(self) -> None:
        if self.num_branch_blocks < 0 or self.num_frames < 1:
            raise ValueError("num_branch_blocks must not be negative, num_frames must be at least 1")
        if not 0 < self.tmp_weight < 1:
            raise ValueError(f"tmp_weight must lie between 0 and 1, got {self.tmp_weight}")


@dataclass(frozen=True)
class BaselineConfig:
    """Settings of the methods that are not ours."""

    templates: TemplateSet = "photo"
    """Of class names: the bare name, one photo template, three, ImageNet's 80 or 28 for videos."""
    num_context: int = 16
    """Learned vectors of a CoOp or DualCoOp prompt."""
    context_words: str = ""
    """Words that CoOp's context starts from (then as long as they are), such as "a photo of a"."""
    places: Literal["video", "frames"] = "video"
    """What DualCoOp chooses from, per class: the video's mean alone (then a label is a vector), or its frames."""
    learning_rate: float | None = None
    """2e-3 for prompts, 1e-5 for whole towers."""

    def __post_init__(self) -> None:
        if self.num_context < 1:
            raise ValueError("num_context must be at least 1")


@dataclass(frozen=True)
class LabelEncoderConfig:
    """The label encoder: how many soft attributes an LLM writes for a label, and how CLIP reads them.

    Each of the ``num_prefixes`` (N) learned prefixes makes the LLM write ``num_attributes`` (K) soft attributes of
    ``tokens_per_attribute`` (L) tokens; a label thus has N * K soft attributes.
    """

    llm: str = "smollm2-135m-instruct"
    """A name that ``vidlex.model.weights.fetch_llm`` knows, a hub name or a local folder."""
    num_prefixes: int = 4
    num_attributes: int = 1
    tokens_per_attribute: int = 8
    """One attribute of eight tokens by default: the first state, which has just read the prompt, knows the label's
    meaning best, and the prompting transformer sees it only within its own attribute."""
    prompting_width: int = 256
    prompting_layers: int = 2
    prompting_heads: int = 4
    renormalize: bool = False
    """Whether the mean of the normalised text features is brought back to length 1 (the paper does not)."""
    with_name: bool = False
    """Whether the name alone, without soft tokens, is one more text of the mean (the paper does not)."""
    name_trust: float = 0.0
    """0 to 1: how far a label that CLIP knows is scored by frozen CLIP beside the trained branch
    (``label_encoder.fuse_with_names``; the paper does not). Features of labels and videos are then twice as long. It is
    chosen or set when training is over."""
    soft_behind: bool = False
    """Whether the soft tokens stand behind the name (the paper puts them in front of it): CLIP then reads the name
    where it has learned to."""
    prompt_version: str = "v2"
    feedback: Feedback = "greedy"
    """What the LLM reads back while it decodes: the likeliest token, or the mean embedding under its softmax (for
    ablation: rounding errors then grow from step to step, so a label's vector depends a little on its batch)."""
    seed: int = 0
    """Of the prefixes and the prompting transformer at the start."""

    def __post_init__(self) -> None:
        for name in ("num_prefixes", "num_attributes", "tokens_per_attribute", "prompting_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not 0 <= self.name_trust <= 1:
            raise ValueError(f"name_trust must lie between 0 and 1, got {self.name_trust}")
        if self.prompting_heads < 1 or self.prompting_width % self.prompting_heads:
            raise ValueError("prompting_width must be a multiple of prompting_heads")
        if self.feedback not in ("greedy", "soft"):
            raise ValueError(f"unknown feedback {self.feedback!r}: greedy or soft")

    @property
    def num_decoded(self) -> int:
        """K * L, the tokens that the LLM decodes per prefix."""
        return self.num_attributes * self.tokens_per_attribute

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        for option in ("with_name", "name_trust", "soft_behind"):
            if not values[option]:  # younger than the first checkpoints, whose fingerprints shall not change
                del values[option]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelEncoderConfig:
        """Raises ValueError for a field that this version does not know."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown fields of the label encoder's configuration: {', '.join(sorted(unknown))}")
        return cls(**values)
