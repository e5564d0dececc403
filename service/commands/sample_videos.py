"""`vidlex samples`, and videos of a single colour for `vidlex doctor` and for the demo with the dummy model."""

from __future__ import annotations

import json
from pathlib import Path

from vidlex.model.specs import list_zoo, zoo_dir
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, print_text, use_json

WIDTH, HEIGHT, FPS = 320, 240, 24


def samples(as_json: JsonFlag = False) -> None:
    """Print the paths of the bundled sample videos, one per line. With --json a list with their true labels."""
    use_json(as_json)
    found: dict[Path, list[str]] = {}
    for model in list_zoo():
        found |= read_samples(zoo_dir() / model)
    if as_json:
        print_json([{"path": str(path), "labels": labels} for path, labels in found.items()])
        return
    if not found:
        raise CommandError("no sample videos are installed")
    for path in found:
        print_text(str(path), markup=False)


def read_samples(checkpoint: Path) -> dict[Path, list[str]]:
    """The sample videos of a checkpoint and their true labels; empty if it has none."""
    folder = checkpoint / "samples"
    try:
        document = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {folder / file: list(labels) for file, labels in document.items()}


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
