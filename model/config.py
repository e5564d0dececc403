"""Configurations of the encoders. Their field names are part of the checkpoint format."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Feedback = Literal["greedy", "soft"]
Method = Literal["ours", "class_name", "fixed_llm", "coop", "dualcoop", "vificlip"]  # trained or built by the factory
CheckpointMethod = Literal["ours", "class_name", "fixed_llm", "coop", "dualcoop", "vificlip", "kernel"]
LlmDtype = Literal["auto", "float32", "bfloat16"]
TemplateSet = Literal["name", "photo", "default", "imagenet", "video"]


def fingerprint(*parts: Any) -> str:
    """16 hex digits over JSON values; stable across processes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class VideoEncoderConfig:
    """A frozen image tower with a temporal branch parallel to its last ``num_branch_blocks`` blocks."""

    num_branch_blocks: int = 4
    """Blocks of the temporal branch; 0 disables it: the video feature is then the frame mean."""
    num_frames: int = 8
    """Frames per video in training, and the default when serving."""
    tmp_weight: float = 0.5
    """Initial weight of the branch against the frame mean; learned."""

    def __post_init__(self) -> None:
        if self.num_branch_blocks < 0 or self.num_frames < 1:
            raise ValueError("num_branch_blocks must not be negative, num_frames must be at least 1")
        if not 0 < self.tmp_weight < 1:
            raise ValueError(f"tmp_weight must be between 0 and 1, got {self.tmp_weight}")


@dataclass(frozen=True)
class BaselineConfig:
    templates: TemplateSet = "photo"
    """Prompts around class names: none, a photo template, three, ImageNet's 80, or 28 for videos."""
    num_context: int = 16
    """Learned context vectors of a CoOp or DualCoOp prompt."""
    context_words: str = ""
    """Initial words of CoOp's context, such as "a photo of a"; their number of tokens overrides ``num_context``."""
    places: Literal["video", "frames"] = "video"
    """Regions that DualCoOp pools over: the frame mean alone, or the frames and their mean. A label is a vector only
    with "video"."""
    learning_rate: float | None = None
    """Peak learning rate; by default 2e-3 for prompts, 1e-5 for whole towers."""

    def __post_init__(self) -> None:
        if self.num_context < 1:
            raise ValueError("num_context must be at least 1")


@dataclass(frozen=True)
class LabelEncoderConfig:
    """The LLM decodes N * K soft attributes of L tokens for a label, and CLIP's text tower reads them.

    N is ``num_prefixes``, K ``num_attributes`` per prefix and L ``tokens_per_attribute``.
    """

    llm: str = "smollm2-135m-instruct"
    """The LLM: the default's name, a hub name or a local folder (``vidlex.model.weights.llm.fetch_llm``)."""
    llm_dtype: LlmDtype = "auto"
    """Precision of the LLM: float32 on a CPU and bfloat16 on a GPU, or a fixed one. The checkpoint keeps it. bfloat16
    takes half the memory and is faster on a GPU, slower on a CPU; a label's vector then depends on its batch by
    rounding."""
    num_prefixes: int = 4
    """Learned prefixes (N)."""
    num_attributes: int = 1
    """Soft attributes per prefix (K)."""
    tokens_per_attribute: int = 8
    """Tokens per soft attribute (L). The first state carries most of the label's meaning, and the prompting transformer
    attends to it only within its own attribute: so the default is one long attribute."""
    prompting_width: int = 256
    """Width of the prompting transformer; a multiple of its heads."""
    prompting_layers: int = 2
    """Blocks of the prompting transformer."""
    prompting_heads: int = 4
    """Attention heads of the prompting transformer."""
    renormalize: bool = False
    """Normalise the mean of the unit text features to length 1. The paper does not."""
    with_name: bool = False
    """Add the name without soft tokens to the texts of the mean. The paper does not."""
    name_trust: float = 0.0
    """0 to 1: weight of frozen CLIP in the score of labels that CLIP already knows (not in the paper, see
    ``vidlex.model.extensions.name_trust``). Above 0, label and video features have twice the width. Set after
    training."""
    soft_behind: bool = False
    """Place the soft tokens after the name, so that CLIP reads the name at its usual positions. The paper places them
    before it."""
    prompt_version: str = "v2"
    """Version of the LLM's prompt text."""
    feedback: Feedback = "greedy"
    """Input of the next decoding step: the embedding of the most likely token, or the mean embedding under the softmax.
    The latter is for ablation: rounding errors grow with every step, so a label's vector depends slightly on its
    batch."""
    seed: int = 0
    """Seed for the initial prefixes and prompting transformer."""

    def __post_init__(self) -> None:
        for name in ("num_prefixes", "num_attributes", "tokens_per_attribute", "prompting_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not 0 <= self.name_trust <= 1:
            raise ValueError(f"name_trust must be between 0 and 1, got {self.name_trust}")
        if self.prompting_heads < 1 or self.prompting_width % self.prompting_heads:
            raise ValueError("prompting_width must be a multiple of prompting_heads")
        if self.feedback not in ("greedy", "soft"):
            raise ValueError(f"unknown feedback {self.feedback!r}: greedy or soft")
        if self.llm_dtype not in get_args(LlmDtype):
            raise ValueError(f"unknown llm_dtype {self.llm_dtype!r}: {', '.join(get_args(LlmDtype))}")

    def for_device(self, device: str) -> LabelEncoderConfig:
        """With ``llm_dtype`` decided."""
        if self.llm_dtype != "auto":
            return self
        return replace(self, llm_dtype="bfloat16" if device.startswith("cuda") else "float32")

    @property
    def num_decoded(self) -> int:  # per prefix
        return self.num_attributes * self.tokens_per_attribute

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        # what early checkpoints lack is left out: their fingerprints must stay the same
        for option in ("with_name", "name_trust", "soft_behind"):
            if not values[option]:
                del values[option]
        if self.llm_dtype != "bfloat16":
            del values["llm_dtype"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LabelEncoderConfig:  # of a checkpoint, wherever it was trained
        return cls(**{"llm_dtype": "float32", **values})


@dataclass(frozen=True)
class KernelConfig:
    """Labels by kernel regression: the LLM's states of a label after each of several prompts are compared with those of
    landmarks, labels whose classifier weights in the space of the image tower are known.

    A video's feature is [z; c; m h; m sqrt(1 - |h|^2)] / sqrt(1 + c^2 + m^2), of length 1: z is the tower's centred
    unit feature, h the motion branch's logits with |h| <= 1, c ``constant`` and m ``motion_weight``. Without a motion
    branch it is [z; c] / sqrt(1 + c^2).
    """

    llm: str = "smollm2-135m-instruct"
    prompts: tuple[str, ...] = (
        "visible", "kind", "place", "looks", "parts", "similar", "define", "photo", "belongs", "used",
    )  # fmt: skip
    """Versions of the LLM's prompts."""
    num_landmarks: int = 3000
    rank: int = 128
    """Coordinates of a state, per prompt."""
    kind_width: int = 0
    """Coordinates of a label's kind, for a second kernel; 0: none."""
    num_channels: int = 1280
    """Of the image tower's last feature map."""
    state_scale: float = 3.0
    """Of the kernel ``exp(-scale / 2 * |a - b|^2)`` over states."""
    kind_scale: float = 1.0
    """Of the kernel over kinds."""
    slope: float = 1.0
    norm_power: float = 1.0
    """A label's weights w become ``slope * w / |w|^norm_power``."""
    bias_scale: float = 1.0
    bias_shift: float = 0.0
    """A label's bias b becomes ``bias_scale * b + bias_shift``."""
    constant: float = 1.0
    motion_weight: float = 1.0
    max_logit: float = 64.0
    """Length that weights and bias of a label may have together; more are scaled down to it."""
    motion: dict[str, Any] | None = None
    """Configuration of the motion branch."""

    def __post_init__(self) -> None:
        for name in ("num_landmarks", "rank", "num_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.kind_width < 0 or not self.prompts:
            raise ValueError("kind_width must not be negative, and there must be at least one prompt")
        for name in ("state_scale", "kind_scale", "slope", "constant", "motion_weight", "max_logit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive")

    @property
    def num_motion_labels(self) -> int:
        return 0 if self.motion is None else int(self.motion["num_labels"])

    @property
    def dim(self) -> int:
        return self.num_channels + 1 + (self.num_motion_labels + 1 if self.motion is not None else 0)

    @property
    def video_length(self) -> float:  # of the video feature before it is divided by it
        return math.sqrt(1 + self.constant**2 + (self.motion_weight**2 if self.motion is not None else 0))

    @property
    def logit_scale(self) -> float:
        return self.max_logit * self.video_length

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> KernelConfig:
        return cls(**{**values, "prompts": tuple(values["prompts"])})
