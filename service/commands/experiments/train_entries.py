"""The functions behind `vidlex train`, `vidlex eval suite` and `vidlex data build emoji`; PyTorch is imported late."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig
from vidlex.model.photo.config import BuildConfig, LearnConfig
from vidlex.model.sources.config import DataConfig, EmojiConfig
from vidlex.model.suite.config import SuiteConfig
from vidlex.model.suite.pretrain_config import PretrainConfig
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.weights.cache import cache_dir
from vidlex.service.commands.experiments.dataclass_options import command_line
from vidlex.service.commands.output import progress

_ART_CACHE = cache_dir() / "art"

OPTION_GROUPS = {
    FitConfig: {
        "the paper's": (
            "recipe",
            "num_warmup_steps",
            "num_ramp_steps",
            "num_joint_steps",
            "batch_size",
            "num_step_labels",
            "all_positives",
            "new_learning_rate",
            "copied_learning_rate",
            "label_learning_rate",
            "interpolation_lambda",
            "num_prefix_steps",
            "num_prefix_labels",
            "num_prefix_vocabulary",
            "prefix_learning_rate",
            "num_label_steps",
            "label_stage_learning_rate",
            "num_stage_labels",
            "weight_decay",
        ),
        "run": (
            "device",
            "seed",
            "bf16",
            "num_accumulation_steps",
            "num_cached_videos",
            "num_validation_videos",
            "evaluate_every",
            "save_every_seconds",
        ),
        "beyond the paper": (
            "negative_weight",
            "video_hold",
            "label_hold",
            "state_noise",
            "ema_decay",
            "patience",
        ),
    },
}
"""Groups of options in the help."""


def pretrain(config: PretrainConfig, *, out: Path = Path("runs/pretrain"), art_cache: Path = _ART_CACHE) -> Path:
    """Train a small CLIP from random weights, and write an open_clip folder. A repeated command resumes the run.

    Args:
        out: Folder of the run: state, log and the open_clip folder `clip`.
        art_cache: Folder of the downloaded artwork.
    """
    from vidlex.model.suite.pretrain import main

    return main(config, out, art_cache)


def fit(
    config: FitConfig,
    video: VideoEncoderConfig,
    label: LabelEncoderConfig,
    baseline: BaselineConfig,
    *,
    data: DataConfig,
    emoji: EmojiConfig,
    clip_name: str,
    checkpoint_id: str,
    out: Path = Path("runs/fit"),
    art_cache: Path = _ART_CACHE,
    method: Method = "ours",
    store_clip: bool = True,
    half: bool = True,
) -> Path:
    """Fine-tune label encoder and temporal branch on labelled videos, and write a checkpoint. Resumes if repeated.

    Args:
        clip_name: The CLIP: NAME/PRETRAINED of open_clip, or local-dir:FOLDER.
        checkpoint_id: Name of the checkpoint, part of every answer of a service.
        out: Folder of the run: state, log and the folder `checkpoint`.
        art_cache: Folder of the downloaded artwork.
        method: The paper's method, or a baseline on the frame mean.
        store_clip: Store CLIP's weights in the checkpoint; otherwise only its name and digest.
        half: Store the weights as float16.
    """
    from vidlex.model.sources.open import source_opener
    from vidlex.model.train.run_fit import main

    return main(
        config, video, label, baseline, method=method, clip_name=clip_name,
        open_source=source_opener(data, emoji, art_cache), out=out, checkpoint_id=checkpoint_id, store_clip=store_clip,
        half=half,
    )  # fmt: skip


def ship(
    *,
    checkpoint: Path = Path("runs/fit/checkpoint"),
    art_cache: Path = _ART_CACHE,
    name: str = "emoji-small",
    num_test_videos: int = 400,
) -> Path:
    """Evaluate a trained checkpoint on held-out videos, and copy it to the zoo with its model card and sample videos.

    Args:
        checkpoint: Folder of the checkpoint.
        art_cache: Folder of the downloaded artwork.
        name: Name in the zoo.
        num_test_videos: Videos of the larger of the two test sets.
    """
    from vidlex.model.suite.ship import main

    return main(checkpoint=checkpoint, art_cache=art_cache, name=name, num_test_videos=num_test_videos)


def photo(config: BuildConfig, learn: LearnConfig) -> Path:
    """Learn labels from an image classifier's weights and photographs, and write the checkpoint photo-small."""
    from vidlex.model.photo.build import build

    with progress("reading", total=None) as bar:
        build(config, learn, report=lambda text: bar.update(bar.task_ids[0], description=text))
    return config.out


def suite(
    config: SuiteConfig,
    *,
    clip_name: str,
    out: Path = Path("runs/suite"),
    art_cache: Path = _ART_CACHE,
    report: Path | None = None,
    report_only: bool = False,
) -> Path:
    """Train and evaluate our method, the baselines and the ablations, and write a report. Resumes if repeated.

    Args:
        clip_name: The CLIP: NAME/PRETRAINED of open_clip, or local-dir:FOLDER.
        out: Folder of the rows, their states and checkpoints.
        art_cache: Folder of the downloaded artwork.
        report: Folder of the report; by default the folder `report` in `out`.
        report_only: Write the report of the existing rows without training.
    """
    from vidlex.model.suite.suite import main

    return main(
        config, clip_name=clip_name, out=out, art_cache=art_cache, report=report, command=command_line.get(),
        report_only=report_only,
    )  # fmt: skip


def build_emoji(
    *,
    out: Path = Path("data/emoji"),
    art_cache: Path = _ART_CACHE,
    num_videos: int = 200,
    split: Literal["train", "val", "test"] = "test",
    part: Literal["seen", "unseen_words", "unseen_actions", "rare_pairs", "unseen_style"] = "seen",
    seed: int = 0,
    min_labels: int = 1,
    max_labels: int = 64,
    size: int = 192,
) -> Path:
    """Render labelled videos of 4 s from emoji. The same options give the same videos.

    Args:
        out: Folder of the manifest, the labels and the videos.
        art_cache: Folder of the downloaded artwork.
        num_videos: Number of videos.
        split: Backgrounds and motions of training, validation or test videos.
        part: The labels of training (seen), or a set of labels or a style that training lacks.
        seed: Seed of the videos.
        min_labels: Fewest true labels of a video.
        max_labels: Most true labels of a video.
        size: Width and height in pixels, scaled from 96.
    """
    from vidlex.model.emoji.build import build

    with progress("rendering videos", total=num_videos) as bar:
        return build(
            out, art_cache, num_videos=num_videos, split=split, part=part, seed=seed, min_labels=min_labels,
            max_labels=max_labels, size=size,
            progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )  # fmt: skip
