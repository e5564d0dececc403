"""Builds the checkpoint `photo-small`: `vidlex train photo`.

The image tower and the LLM are fetched. What is learned here: the labels (``learn.py``), their probability scale on
photographs that were not learned from, and the statistics of photographs in general. The motion branch is trained
before (``vidlex.model.camera_work``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from vidlex.model.calibration.bank import BANK
from vidlex.model.calibration.domain import DefaultCalibration, Reference, bank_of
from vidlex.model.calibration.statistics import DomainStatistics
from vidlex.model.config import KernelConfig
from vidlex.model.eval.calibration import fit_platt
from vidlex.model.eval.metrics import peak_f1
from vidlex.model.factory import load_classifier
from vidlex.model.kernel.export import write_checkpoint
from vidlex.model.kernel.loading import create_tower
from vidlex.model.kernel.prompt_states import PromptStates
from vidlex.model.photo.config import BuildConfig, LearnConfig
from vidlex.model.photo.learn import Motion, States, learn_labels
from vidlex.model.photo.photos import (
    VALIDATION,
    frequent_labels,
    label_matrix,
    load_photo,
    photo_features,
    read_photos,
)
from vidlex.model.photo.wordnet import read_taxonomy
from vidlex.model.scoring import Calibration
from vidlex.model.text.load_llm import load_llm
from vidlex.model.video.still_motion import StillMotionEncoder
from vidlex.model.weights.llm import fetch_llm
from vidlex.model.weights.tower import DEFAULT_TOWER, fetch_tower

MOTION_WEIGHT = 4.0
# Of a label's mean in a domain, most is its learned bias. On validation photographs, calibrated on 16 or on half of
# them, the whole costs up to 0.18 of micro AUPR, a half 0.03, a quarter 0.008.
CALIBRATION_MEAN_WEIGHT = 0.25
MAX_MOTION_SLOPE = 8.0  # logit per standardised score

Floats = NDArray[np.float32]
Report = Callable[[str], None]


def build(
    config: BuildConfig, learn: LearnConfig = LearnConfig(), *, report: Report, states: States | None = None
) -> None:
    """``states``: of texts, if they are already known."""
    tower = create_tower(DEFAULT_TOWER)
    still = StillMotionEncoder(
        tower.model, KernelConfig(num_landmarks=1, rank=1), num_frames=8, mean=tower.mean, std=tower.std
    )
    photos = read_photos()
    report(f"features of {len(photos)} photographs")
    features = photo_features(
        [photo.file(config.photos) for photo in photos], lambda x: _tower_features(still, x), tower.image_size
    )
    centre: Floats = features.mean(axis=0)
    photo_z = features - centre
    photo_z /= np.linalg.norm(photo_z, axis=1, keepdims=True)
    motion, motion_config = read_motion(config.motion)
    report("learning labels")
    learned = learn_labels(
        learn,
        taxonomy=read_taxonomy(config.wordnet),
        classifier_weight=load_file(fetch_tower() / "model.safetensors")["classifier.weight"].numpy(),
        states=states or _read_states(learn),
        photos=photos,
        photo_z=photo_z,
        motion=motion,
    )
    kernel = KernelConfig(
        prompts=learn.prompts,
        num_landmarks=len(learned.texts),
        rank=learn.rank,
        kind_width=learn.kind_width,
        num_channels=features.shape[1],
        state_scale=learn.state_scale,
        kind_scale=learn.kind_scale,
        norm_power=0.0,
        motion_weight=MOTION_WEIGHT,
        motion=motion_config,
    )
    tensors: dict[str, Any] = {**learned.tensors, "video.centre": centre}
    tensors |= {f"motion.{k}": v for k, v in load_file(config.motion / "motion.safetensors").items()}
    write = partial(write_checkpoint, config.out, kernel, tensors, id=config.id, landmark_names=learned.texts)
    write()
    report("probability scale and statistics")
    classifier = load_classifier(str(config.out), device="cpu", precision="float32")
    vectors = classifier.encode_video(
        [load_photo(photo.file(config.photos), tower.image_size)[None] for photo in photos]
    )
    statistics = DomainStatistics.of(vectors)
    bank = bank_of(statistics, classifier.encode_labels(BANK))
    default = DefaultCalibration(statistics, Reference(bank.mean, bank.std), bank, CALIBRATION_MEAN_WEIGHT)
    scale, threshold = Calibration(), 0.5
    if config.validation is not None:
        scale, threshold = _fit_scale(classifier, config.validation, tower.image_size)
    write(scorer_calibration=scale, calibration=default, default_threshold=threshold)
    report(f"written to {config.out}: {scale}, {threshold = }")


@torch.inference_mode()
def _tower_features(encoder: StillMotionEncoder, frames: NDArray[np.uint8]) -> Floats:  # [n, H, W, 3] -> [n, D]
    pixels = encoder.to_pixels(torch.from_numpy(frames).permute(0, 3, 1, 2))
    features: Floats = encoder.run_tower(pixels).features.numpy()
    return features


def _read_states(config: LearnConfig) -> States:
    llm = load_llm(fetch_llm())
    llm.optimize_for_inference()
    prompts = PromptStates(llm, config.prompts)
    return lambda names: prompts.states(names).numpy()


def read_motion(folder: Path) -> tuple[Motion, dict[str, Any]]:
    """A motion branch's labels, and its configuration."""
    data = json.loads((folder / "motion.json").read_text(encoding="utf-8"))
    config = data["config"]
    rows = sorted(data["labels"], key=lambda row: row["column"])
    slopes = np.array([row["scale"] for row in rows], np.float32)
    biases = np.array([row["bias"] for row in rows], np.float32)
    shrink = np.minimum(1, MAX_MOTION_SLOPE / slopes)  # keeps the score at which a label is as likely as not
    length = config["max_score"] * len(rows) ** 0.5  # the encoder divides scores by it
    return Motion(tuple(tuple(row["wordings"]) for row in rows), slopes * shrink * length, biases * shrink), config


def _fit_scale(classifier: Any, folder: Path, image_size: int) -> tuple[Calibration, float]:
    """Platt scaling, and the probability with the highest F1, over all known pairs of photo and label."""
    photos = read_photos(VALIDATION)
    labels = frequent_labels(photos, 1)
    truth, known = label_matrix(photos, labels)
    vectors = classifier.encode_video([load_photo(photo.file(folder), image_size)[None] for photo in photos])
    logits, targets = classifier.scorer.logit(vectors @ classifier.encode_labels(labels).T)[known], truth[known] > 0
    scale = fit_platt(logits, targets)
    _, best = peak_f1(logits, targets)
    return scale, round(float(scale.probability(best)), 4)
