"""`vidlex samples`, and videos of a single colour for `vidlex doctor` and for the demo with the dummy model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vidlex.model.specs import checkpoint_folder, is_checkpoint_spec
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, print_text, use_json
from vidlex.service.commands.preflight import require_model
from vidlex.service.commands.weights import with_progress

WIDTH, HEIGHT, FPS = 320, 240, 24


@dataclass(frozen=True)
class Sample:
    path: Path
    labels: tuple[str, ...]  # what it shows, not exhaustive
    licence: str | None  # None: that of the checkpoint


def samples(
    model: Annotated[
        str | None, typer.Option(help="A model with videos of its own. Default: real videos, downloaded once (5 MB).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print the paths of sample videos, one per line. With --json a list with their labels and licences."""
    use_json(as_json)
    if model is not None:
        require_model(model)
    found = real_samples() if model is None else checkpoint_samples(model)
    if not found:
        raise CommandError(f"the model {model} has no sample videos of its own; `vidlex samples` prints real videos")
    if as_json:
        print_json(
            [{"path": str(video.path), "labels": list(video.labels), "licence": video.licence} for video in found]
        )
        return
    for video in found:
        print_text(str(video.path), markup=False)


def real_samples() -> list[Sample]:
    """Downloaded unless they are cached. Raises CommandError."""
    from vidlex.model.weights.sample_videos import fetch_sample_videos

    found = with_progress("sample videos", fetch_sample_videos)
    return [Sample(path, video.labels, video.licence) for path, video in found.items()]


def checkpoint_samples(model: str) -> list[Sample]:
    """Those in the folder of a checkpoint; empty if it has none."""
    if not is_checkpoint_spec(model):
        return []
    folder = checkpoint_folder(model) / "samples"
    try:
        document = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [Sample(folder / file, tuple(labels), None) for file, labels in document.items()]


def write_colour_video(path: Path, rgb: tuple[int, int, int], *, seconds: float = 2.0) -> Path:
    """Write an H.264 mp4 with all pixels ``rgb``."""
    import av
    import numpy as np

    picture = np.full((HEIGHT, WIDTH, 3), rgb, dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(round(seconds * FPS)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path
