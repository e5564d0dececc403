"""Settings of the suite. The field docstrings are the help texts of ``vidlex eval suite``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vidlex.model.config import LabelEncoderConfig, VideoEncoderConfig
from vidlex.model.sources.config import EmojiConfig
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.config import NO_EVALUATION

NUM_PREFIX_VOCABULARY = 600


@dataclass(frozen=True)
class SuiteConfig:
    """The defaults suit two CPU cores and about an hour; the README has a command for a GPU."""

    num_seeds: int = 3
    """Training runs of each trained method in the main table."""
    num_pool_videos: int = 10_000
    """Rendered training videos that all rows share."""
    num_test_videos: int = 400
    """Test videos per column."""
    num_validation_videos: int = 400
    """Validation videos."""
    num_frames: int = 8
    """Frames per video."""
    num_branch_blocks: int = 2
    """Blocks of the temporal branch."""
    llm: str = "smollm2-135m-instruct"
    """The LLM: the default's name, a hub name or a local folder."""
    num_prefixes: int = 2
    """Learned prefixes (N)."""
    num_attributes: int = 1
    """Soft attributes per prefix (K)."""
    tokens_per_attribute: int = 8
    """Tokens per soft attribute (L)."""
    batch_size: int = 32
    """Videos per joint step."""
    num_step_labels: int = 128
    """Labels per joint step."""
    all_positives: bool = False
    """Use every positive label of a batch, as in the paper; otherwise an unbiased sample of them."""
    num_warmup_steps: int = 100
    """Steps of the label encoder alone on frame means, before the joint steps."""
    num_joint_steps: int = 500
    """Joint steps of our method in the main table."""
    num_prefix_steps: int = 20
    """Steps in which the prefixes are learned."""
    num_prefix_labels: int = 12
    """Labels per prefix step; each runs through the LLM."""
    num_baseline_steps: int = 300
    """Steps of the trained baselines."""
    num_tuned_frames: int = 4
    """Frames per video for the baseline that trains CLIP's towers."""
    num_tuned_videos: int = 16
    """Videos per step for the baseline that trains CLIP's towers."""
    num_ablation_steps: int = 250
    """Joint steps of the ablations of the video side."""
    num_label_ablation_steps: int = 200
    """Steps of the ablations of the label side."""
    num_long_steps: int = 0
    """Joint steps of additional, longer runs of our method; 0: none."""
    held: bool = False
    """Use the CLIP regulariser, further pairs and soft tokens after the name in all rows of ours."""
    num_more_pairs: int = 2000
    """Additional training labels that name a noun with its action, in rows with the CLIP regulariser."""
    video_hold: float = 0.5
    """Weight of the video distillation loss in rows with the CLIP regulariser."""
    label_hold: float = 1.0
    """Weight of the label distillation loss in rows with the CLIP regulariser."""
    pair_weight: float = 1.0
    """Weight of pair labels in the loss, in rows with the CLIP regulariser."""
    state_noise: float = 0.0
    """Noise on the LLM states in rows with the CLIP regulariser, in standard deviations."""
    num_settling_steps: int = 0
    """Label steps of additional rows that continue from those of ours with a fixed branch; 0: none."""
    num_settling_labels: int = 512
    """Labels per such step."""
    num_settling_videos: int = 4000
    """Training videos of these rows: the first ones of the pool."""
    num_settling_pairs: int = 3000
    """Additional pairs of these rows, at most."""
    settling_rate: float = 2.5e-3
    """label_learning_rate of these rows."""
    with_ablations: bool = True
    """Train the ablations and the rows without the LLM."""
    skipped: str = ""
    """Baselines to leave out, separated by commas; fixed_llm generates a text for each of 2,700 labels."""
    device: str = "cpu"
    """PyTorch device, such as cpu or cuda."""
    bf16: bool | None = None
    """bfloat16 autocast."""

    def video(self) -> VideoEncoderConfig:
        return VideoEncoderConfig(num_branch_blocks=self.num_branch_blocks, num_frames=self.num_frames)

    def label(self) -> LabelEncoderConfig:
        return LabelEncoderConfig(
            llm=self.llm,
            llm_dtype="float32",
            num_prefixes=self.num_prefixes,
            num_attributes=self.num_attributes,
            tokens_per_attribute=self.tokens_per_attribute,
            soft_behind=self.held,
        )

    def settling(self, seed: int) -> FitConfig:
        """Of the label stage of the rows "settled"."""
        return replace(
            self.fit(seed), num_label_steps=self.num_settling_steps, num_stage_labels=self.num_settling_labels,
            num_cached_videos=self.num_settling_videos, label_learning_rate=self.settling_rate,
        )  # fmt: skip

    def regularised(self) -> dict[str, dict[str, Any]]:
        """The settings of training with the CLIP regulariser: changes of ``fit`` and of ``emoji``."""
        return {
            "fit": {"video_hold": self.video_hold, "label_hold": self.label_hold, "state_noise": self.state_noise},
            "emoji": {"num_more_pairs": self.num_more_pairs, "pair_weight": self.pair_weight},
        }

    def emoji(self) -> EmojiConfig:
        return EmojiConfig(**self.regularised()["emoji"]) if self.held else EmojiConfig()

    def fit(self, seed: int) -> FitConfig:
        fit = FitConfig(
            num_warmup_steps=self.num_warmup_steps, num_joint_steps=self.num_joint_steps,
            num_prefix_steps=self.num_prefix_steps, num_prefix_labels=self.num_prefix_labels,
            num_prefix_vocabulary=NUM_PREFIX_VOCABULARY, batch_size=self.batch_size,
            num_step_labels=self.num_step_labels, all_positives=self.all_positives,
            num_cached_videos=self.num_pool_videos, num_validation_videos=self.num_validation_videos,
            num_ramp_steps=50, evaluate_every=NO_EVALUATION, device=self.device, bf16=self.bf16, seed=seed,
        )  # fmt: skip
        return replace(fit, **self.regularised()["fit"]) if self.held else fit
