"""Settings of the fine-tuning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vidlex.model.train.loop import LoopConfig


@dataclass(frozen=True)
class FitConfig:
    """Settings of the fine-tuning stages."""

    num_joint_steps: int = 2000
    batch_size: int = 32
    num_step_labels: int = 96
    """Labels per step of the joint stage: the batch's positives and sampled negatives."""
    all_positives: bool = True
    """Whether a step reads every label that is true in its batch; otherwise positives too are an unbiased draw where
    they are more than the step's labels."""
    num_stage_labels: int = 0
    """Labels per step of the label stage, drawn at random; 0: all."""
    new_learning_rate: float = 1.5e-3
    copied_learning_rate: float = 4e-4
    label_learning_rate: float = 1e-3
    interpolation_lambda: float = 1.0
    """alpha ~ U(0, lambda) per step on the branch's spatial weights; 0 switches the regularisation off."""
    negative_weight: float = 1.0
    action_weight: float = 3.0
    pair_weight: float = 1.0
    video_hold: float = 0.0
    """Weight of the loss that keeps the videos' scores by CLIP's own reading of the labels (``losses.video_hold``)."""
    label_hold: float = 0.0
    """Weight of the loss that keeps the scores of the labels that CLIP knows on CLIP's own videos (``label_hold``)."""
    state_noise: float = 0.0
    """Noise on the LLM's states that a step reads, in standard deviations of the states: labels are then learned with
    their neighbourhood, or those that are few, such as motions, are learned by heart."""
    num_more_pairs: int = 0
    """Further labels of training that name a thing and what it does together (``Protocol.more_pairs``)."""
    one_sprite_until: float = 0.35
    """Part of the joint stage in which videos go from one sprite only to half with two."""
    num_cached_videos: int = 4000
    num_validation_videos: int = 1024
    num_prefix_steps: int = 40
    num_prefix_labels: int = 16
    prefix_learning_rate: float = 3e-3
    num_label_steps: int = 200
    weight_decay: float = 0.02
    bf16: bool | None = None
    """bfloat16 autocast. By default measured when the run begins: whichever is faster here."""
    num_accumulation_steps: int = 1
    """Parts in which each process computes its share of a step's batch: less memory, the same step."""
    ema_decay: float = 0.0
    """Of a moving average of the weights, which is what is evaluated and saved; 0 keeps none."""
    patience: int = 0
    """Evaluations without a better micro AUPR after which a stage ends with its best weights; 0 switches it off."""
    evaluate_every: int = 200
    """Steps of the joint stage."""
    save_every_seconds: float = 60.0
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("video_hold", "label_hold", "state_noise", "num_more_pairs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")

    def loop(self, num_steps: int, *, num_warmup_steps: int, evaluate_every: int) -> LoopConfig:
        """The loop of a stage."""
        return LoopConfig(
            num_steps, num_warmup_steps=num_warmup_steps, evaluate_every=evaluate_every, bf16=bool(self.bf16),
            save_every_seconds=self.save_every_seconds, num_accumulation_steps=self.num_accumulation_steps,
            ema_decay=self.ema_decay, patience=self.patience,
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """What shapes the result: a run goes on under the same ones only."""
        free = ("num_accumulation_steps", "save_every_seconds")
        return {name: value for name, value in asdict(self).items() if name not in free}
