"""The Ray jobs that `vidlex bench bulk` compares with: what is written in an afternoon, with Ray Data and open_clip.

One reads the videos with `ray.data.read_videos`, a row per frame; the other decodes frames in a map over paths. Both
hand full-size frames to actors that hold an open_clip model and score them against the labels.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_FRAMES_PER_BATCH = 32


class ClipScorer:
    """For `map_batches`: full-size frames in, the scores of each frame out."""

    def __init__(self, clip_folder: str, names: Sequence[str], column: str) -> None:
        import open_clip
        import torch

        name = f"local-dir:{clip_folder}"
        self._column = column
        self._name = uuid.uuid4().hex
        self._model, _, self._preprocess = open_clip.create_model_and_transforms(name)
        self._model.eval()
        with torch.inference_mode():
            text = self._model.encode_text(open_clip.get_tokenizer(name)([f"a photo of {n}" for n in names]))
            self._text = text / text.norm(dim=-1, keepdim=True)
        self._ready_at = time.time()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch
        from PIL import Image

        pictures = batch[self._column]  # [N, H, W, 3], or [N, T, H, W, 3]
        flat = [frame for picture in pictures for frame in (picture if picture.ndim == 4 else [picture])]
        with torch.inference_mode():
            images = torch.stack([self._preprocess(Image.fromarray(frame)) for frame in flat])
            features = self._model.encode_image(images)
            similarities = features / features.norm(dim=-1, keepdim=True) @ self._text.T
            scores = (100 * similarities).sigmoid().reshape(len(pictures), -1, len(self._text)).mean(1).numpy()
        count = len(pictures)
        return {
            "path": batch["path"],
            "scores": scores,
            "worker": np.full(count, self._name),
            "ready_at": np.full(count, self._ready_at),  # for the benchmark
        }


def score_read_videos(
    paths: Sequence[Path], out: Path, clip_folder: Path, names: Sequence[str], workers: int
) -> list[float]:
    """A row per frame, one frame a second. Returns when each worker was ready."""
    import ray

    frames = ray.data.read_videos([str(path) for path in paths], include_paths=True, fps=1)
    scored = frames.map_batches(
        ClipScorer,
        fn_constructor_args=[str(clip_folder), list(names), "frame"],
        batch_size=_FRAMES_PER_BATCH,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=0.5,
    )
    return _write(scored, out)


def score_mapped(
    paths: Sequence[Path], out: Path, clip_folder: Path, names: Sequence[str], workers: int
) -> list[float]:
    """A row per video with 8 frames at even distances. Returns when each worker was ready."""
    import ray

    videos = ray.data.from_items([{"path": str(path)} for path in paths], override_num_blocks=max(1, len(paths) // 4))
    scored = videos.map(_decode_evenly, num_cpus=0.5).map_batches(
        ClipScorer,
        fn_constructor_args=[str(clip_folder), list(names), "frames"],
        batch_size=_FRAMES_PER_BATCH // 8,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=0.5,
    )
    return _write(scored, out)


def _write(scored: Any, out: Path) -> list[float]:
    import pyarrow.dataset

    scored.write_parquet(str(out), ray_remote_args={"num_cpus": 0})
    rows = pyarrow.dataset.dataset(out, format="parquet").to_table(columns=["worker", "ready_at"]).to_pylist()
    return list({row["worker"]: row["ready_at"] for row in rows}.values())


def _decode_evenly(row: dict[str, Any], num_frames: int = 8) -> dict[str, Any]:
    import av

    with av.open(row["path"]) as container:
        frames = list(container.decode(video=0))
    chosen = np.linspace(0, len(frames) - 1, num_frames).round().astype(int)
    return {"path": row["path"], "frames": np.stack([frames[i].to_ndarray(format="rgb24") for i in chosen])}
