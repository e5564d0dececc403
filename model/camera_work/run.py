"""The whole training of the motion branch: photos, cached maps, fit, calibration, files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidlex.model.camera_work.fit import (
    Examples,
    LabelCalibration,
    MotionFitConfig,
    calibrate,
    fit_motion_branch,
    macro_aupr,
    predict,
)
from vidlex.model.camera_work.labels import MOTION_LABELS
from vidlex.model.camera_work.map_cache import EncodeMaps, read_map_caches, write_map_cache
from vidlex.model.camera_work.photos import read_photos
from vidlex.model.camera_work.random_scenes import SceneConfig
from vidlex.model.video.motion_branch import MotionBranch, save_motion_branch


@dataclass(frozen=True)
class CameraWorkConfig:
    num_scenes: int = 3200
    """Scenes moved over the photos of training."""
    num_held_out_scenes: int = 700
    """Scenes moved over the other photos: they calibrate, and choose settings."""
    num_frames: int = 8
    """Frames of a video at which the branch is calibrated."""
    seed: int = 1
    """Seed of the scenes."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    fit: MotionFitConfig = field(default_factory=MotionFitConfig)


def train_camera_work(
    photos: Path,
    objects: Path,
    out: Path,
    config: CameraWorkConfig,
    *,
    encode: EncodeMaps,
    image_size: int,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, float]:
    """Writes ``motion.safetensors`` and ``motion.json`` to ``out``; returns metrics on the held-out photos.

    ``photos``, ``objects``: folders with a manifest. ``encode``: the frozen tower up to the map that the branch reads.
    Feature maps that are already in ``out`` are used again.
    """
    caches = []
    for name, is_held_out, num_scenes in (
        ("train", False, config.num_scenes),
        ("held_out", True, config.num_held_out_scenes),
    ):
        folder = out / "maps" / name
        if not (folder / "scenes.npz").exists():
            write_map_cache(
                folder,
                read_photos(photos, objects, is_held_out=is_held_out),
                encode,
                num_scenes=num_scenes,
                seed=config.seed + 100 * is_held_out,
                image_size=image_size,
                config=config.scenes,
                progress=lambda done, total, stage=name: progress(stage, done, total),  # type: ignore[misc]
            )
        caches.append(Examples(read_map_caches([folder])))
    branch = fit_motion_branch(
        caches[0], config.fit, progress=lambda step, loss, branch: progress("fit", step, config.fit.num_steps)
    )
    held_out = caches[1].fixed(config.num_frames)
    export(branch, calibrate(branch, held_out), out)
    return {"held_out_macro_aupr": macro_aupr(*predict(branch, held_out))}


def export(branch: MotionBranch, calibration: Sequence[LabelCalibration], out: Path) -> None:
    save_motion_branch(branch, out / "motion.safetensors")
    (out / "motion.json").write_text(json.dumps(describe(branch, calibration), indent=1) + "\n")


def describe(branch: MotionBranch, calibration: Sequence[LabelCalibration]) -> dict[str, Any]:
    """A label's direction in the feature is the unit vector of its column."""
    labels = []
    for column, (label, row) in enumerate(zip(MOTION_LABELS, calibration, strict=True)):
        names = {"key": label.key, "wordings": list(label.wordings), "held_out": list(label.held_out)}
        labels.append({**names, "column": column, "scale": row.scale, "bias": row.bias, "prior": row.prior})
    return {"config": branch.config.to_json(), "labels": labels}
