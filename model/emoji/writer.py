from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch.nn.functional as F
from torch import Tensor


def write_mp4(frames: Tensor, path: Path, *, fps: int = 12, size: int | None = None) -> None:
    """Write [T, 3, H, W] uint8 as H.264, scaled to ``size`` pixels square if given.

    The metadata is fixed: the same frames give the same bytes with the same encoder.
    """
    if size is not None:
        frames = F.interpolate(frames.float(), size=(size, size), mode="bilinear", antialias=True)
        frames = frames.round().clamp(0, 255).byte()
    pictures = np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())  # [T, H, W, 3]
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "23", "preset": "veryfast", "threads": "1"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
