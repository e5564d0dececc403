"""Settings of the fine-tuning. The field docstrings are the help texts of ``vidlex train fit``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vidlex.model.train.loop.config import LoopConfig


@dataclass(frozen=True)
class FitConfig:
    recipe: str = "joint,prefix,label"
    """Stages of our method in order, separated by commas: joint (branch and prompting transformer), prefix (prefixes,
    through the LLM), label (prompting transformer on the finished branch), and on frame means before a joint stage:
    start and prefix (only the prefixes are kept), warmup (prompting transformer)."""
    num_warmup_steps: int = 100
    """Steps of the stages start and warmup."""
    num_ramp_steps: int = 100
    """Steps of the joint stage over which the learning rates rise."""
    num_joint_steps: int = 2000
    """Steps of the joint stage; the only stage of methods other than ours."""
    batch_size: int = 32
    """Videos per step of the joint stage."""
    num_step_labels: int = 96
    """Labels per step of the joint stage: the batch's positives and sampled negatives."""
    all_positives: bool = True
    """Use every positive label of the batch; otherwise sample positives too if they exceed num_step_labels."""
    num_stage_labels: int = 0
    """Labels per step of the label stage, drawn at random; 0: all."""
    new_learning_rate: float = 1.5e-3
    """Peak learning rate of the temporal branch's new parameters."""
    copied_learning_rate: float = 4e-4
    """Peak learning rate of the temporal branch's parameters that start as copies of CLIP's."""
    label_learning_rate: float = 1e-3
    """Peak learning rate of the prompting transformer; scale and bias have 5 times this, the other stages 0.4 times."""
    interpolation_lambda: float = 1.0
    """alpha ~ U(0, lambda) per step on the branch's spatial weights; 0: no weight interpolation."""
    negative_weight: float = 1.0
    """Weight of negative terms in the loss."""
    video_hold: float = 0.0
    """Weight of the loss that keeps video features close to frozen CLIP's in the directions of the label names."""
    label_hold: float = 0.0
    """Weight of the loss that keeps features of labels that CLIP knows close to CLIP's, in the directions of videos."""
    state_noise: float = 0.0
    """Gaussian noise on the LLM states during training, in standard deviations; against overfitting rare labels."""
    num_cached_videos: int = 4000
    """Training videos whose features the prefix and label stages use."""
    num_validation_videos: int = 1024
    """Validation videos for calibration and for the final metrics."""
    num_prefix_steps: int = 40
    """Steps of the prefix stage."""
    num_prefix_labels: int = 16
    """Labels per step of the prefix stage; each runs through the LLM."""
    prefix_learning_rate: float = 3e-3
    """Peak learning rate of the prefixes in the prefix stage."""
    num_prefix_vocabulary: int = 0
    """Labels on which the stages start and prefix learn, drawn at random; 0: all."""
    num_label_steps: int = 200
    """Steps of the label stage."""
    label_stage_learning_rate: float | None = None
    """Peak learning rate of the label stage; by default 0.4 times label_learning_rate."""
    weight_decay: float = 0.02
    """AdamW weight decay of matrices."""
    bf16: bool | None = None
    """bfloat16 autocast; by default the faster precision, measured at the start of the run."""
    num_accumulation_steps: int = 1
    """Micro-batches per step and process: less memory, the same result."""
    num_chunk_labels: int | None = None
    """Labels whose activations the label encoder keeps at once, by default as many as 4 GB hold; with more labels in a
    step, they are computed again in the backward pass, this many at a time: less memory, the same result. 0: all."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which is evaluated and saved; 0: no average."""
    patience: int = 0
    """Evaluations without a better micro AUPR after which a stage ends with its best weights; 0: never."""
    evaluate_every: int = 200
    """Steps between evaluations in the joint stage."""
    save_every_seconds: float = 60.0
    """Seconds between saves of the resumable state."""
    device: str = "cpu"
    """PyTorch device, such as cpu or cuda."""
    seed: int = 0
    """Seed of the initial weights and of the training data."""

    def __post_init__(self) -> None:
        for name in ("video_hold", "label_hold", "state_noise", "num_chunk_labels"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative")

    def loop(self, num_steps: int, *, num_warmup_steps: int, evaluate_every: int) -> LoopConfig:
        return LoopConfig(
            num_steps, num_warmup_steps=num_warmup_steps, evaluate_every=evaluate_every, bf16=bool(self.bf16),
            save_every_seconds=self.save_every_seconds, num_accumulation_steps=self.num_accumulation_steps,
            ema_decay=self.ema_decay, patience=self.patience,
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """The fields that affect the result: a run resumes only if they are equal."""
        excluded = ("num_accumulation_steps", "num_chunk_labels", "save_every_seconds")
        return {name: value for name, value in asdict(self).items() if name not in excluded}
