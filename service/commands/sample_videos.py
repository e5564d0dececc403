"""Small videos of one colour, whose right answer anyone can see: for `doctor`, and for a demo without weights."""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT, FPS = 320, 240, 24


def write_colour_video(path: Path, rgb: tuple[int, int, int], *, seconds: float = 2.0) -> Path:
    """An H.264 mp4 of nothing but ``rgb``."""
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
