"""Reading frames of a video, against decord, PyAV and torchcodec; keyframe sampling against uniform sampling.

The videos are generated: a moving texture in H.264 with long and short groups of pictures, HEVC and VP9. All sides read
the same frames at the same size. PyAV is measured in two ways: decoding from the first frame to the last requested one,
and seeking to the keyframe before each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.decoder import decode_frames
from vidlex.model.types import FrameGeometry
from vidlex.service.bench.decord_reference import load_decord
from vidlex.service.bench.harness import BenchError, BenchOptions, Case, Figure, Report, Side, compare, report

Frames = NDArray[np.uint8]
KEYFRAME_TARGET = 5.0
_FPS = 25


@dataclass(frozen=True)
class DecodeOptions(BenchOptions):
    repetitions: int = 3
    """Measured runs of each side."""
    # Each side has already read the file once, for the comparison of frames.
    warmups: int = 0
    """Runs of each side before measuring."""
    image_size: int = 224
    """Width and height of a frame in pixels."""
    long_seconds: int = 60
    """Length of the longest video in seconds."""


@dataclass(frozen=True)
class _Video:
    name: str
    codec: str
    suffix: str
    width: int
    height: int
    seconds: int
    gop: int
    options: dict[str, str]
    frame_counts: tuple[int, ...] = (8, 16)


def run(options: DecodeOptions) -> Report:
    cases = []
    with tempfile.TemporaryDirectory(prefix="vidlex-bench-") as folder:
        for number, video in enumerate(_videos(options)):
            if video.codec not in av.codecs_available:
                continue
            path = _write(Path(folder) / f"{number}{video.suffix}", video, options.seed)
            for num_frames in video.frame_counts:
                cases.append(_uniform(path, video, num_frames, options))
            cases.append(_keyframes(path, video, options))
            path.unlink()
    return report("decode", cases, options)


def _videos(options: DecodeOptions) -> list[_Video]:
    h264 = {"preset": "veryfast", "crf": "26"}
    hevc = {"preset": "ultrafast", "x265-params": "log-level=none"}
    vp9 = {"deadline": "realtime", "cpu-used": "8"}
    if options.quick:
        return [_Video("H.264, quick", "libx264", ".mp4", 160, 96, 4, 20, h264, (4,))]
    long = options.long_seconds
    return [
        _Video("H.264 1080p, 6 s, GOP 50", "libx264", ".mp4", 1920, 1080, 6, 50, h264, (8,)),
        _Video(f"H.264 640x360, {long} s, GOP 250", "libx264", ".mp4", 640, 360, long, 250, h264),
        _Video("HEVC 640x360, 10 s, GOP 125", "libx265", ".mp4", 640, 360, 10, 125, hevc, (8,)),
        _Video("VP9 640x360, 10 s, GOP 128", "libvpx-vp9", ".webm", 640, 360, 10, 128, vp9, (8,)),
    ]


def _uniform(path: Path, video: _Video, num_frames: int, options: DecodeOptions) -> Case:
    size = options.image_size
    total = video.seconds * _FPS
    indices = [(2 * i + 1) * total // (2 * num_frames) for i in range(num_frames)]
    readers: dict[str, Callable[[], Frames]] = {
        "vidlex": lambda: decode_frames(path, geometry=FrameGeometry(size, "squash"), num_frames=num_frames).frames,
        "decord": partial(_decord, path, indices, size),
        "PyAV, sequential": partial(_pyav_sequential, path, indices, size),
        "PyAV, seeking": partial(_pyav_seeking, path, indices, size),
    }
    if (torchcodec := _load_torchcodec()) is not None:
        readers["torchcodec"] = partial(_torchcodec, torchcodec, path, indices, size)
    frames: dict[str, Frames] = {}
    failed: dict[str, str] = {}
    for name, read in readers.items():
        try:
            frames[name] = read()
        except Exception as error:  # decord fails on some valid HEVC and VP9 files
            failed[name] = type(error).__name__
    if "vidlex" in failed:
        raise BenchError(f"{video.name}: decoding failed ({failed['vidlex']})")
    differences = [
        Figure(name=f"mean difference to {name}, of 255", value=_difference(frames["vidlex"], other))
        for name, other in frames.items()
        if name != "vidlex"
    ]
    notes = [f"{name} fails on this file ({error})" for name, error in failed.items()]
    if torchcodec is None:
        notes.append("torchcodec cannot be imported here")
    return compare(
        f"{video.name}, {num_frames} frames",
        [Side(name, partial(_discard_result, readers[name])) for name in frames],
        options,
        work=num_frames,
        unit="frames",
        at_least={name: 1.0 for name in frames if name != "vidlex"},
        figures=differences,
        note="; ".join(notes),
    )


def _keyframes(path: Path, video: _Video, options: DecodeOptions) -> Case:
    num_frames = 4 if options.quick else 8
    decode = partial(decode_frames, path, geometry=FrameGeometry(options.image_size, "squash"), num_frames=num_frames)
    uniform, keys = decode(policy="uniform"), decode(policy="keyframes")
    distances_ms = np.abs(np.array(uniform.timestamps_ms) - np.array(keys.timestamps_ms))
    return compare(
        f"{video.name}, keyframe policy",
        [
            Side("keyframes", partial(_discard_result, partial(decode, policy="keyframes"))),
            Side("uniform", partial(_discard_result, partial(decode, policy="uniform"))),
        ],
        options,
        work=num_frames,
        unit="frames",
        at_least={"uniform": KEYFRAME_TARGET} if video.gop >= 250 else {},
        figures=[
            Figure(name="mean distance from the sampled time", value=float(distances_ms.mean()), unit="ms"),
            Figure(name="mean difference of pixels, of 255", value=_difference(uniform.frames, keys.frames)),
        ],
    )


def _discard_result(read: Callable[[], object]) -> None:
    read()


def _difference(one: Frames, other: Frames) -> float:
    return float(np.abs(one.astype(np.int16) - other.astype(np.int16)).mean())


# --- references ----------------------------------------------------------------------------------------------------


def _decord(path: Path, indices: list[int], size: int) -> Frames:
    frames: Frames = load_decord().VideoReader(str(path), width=size, height=size).get_batch(indices).asnumpy()
    return frames


def _scaled(frame: Any, size: int) -> Frames:
    picture: Frames = frame.reformat(size, size, "rgb24", interpolation="BICUBIC").to_ndarray()
    return picture


def _pyav_sequential(path: Path, indices: list[int], size: int) -> Frames:
    wanted, frames = set(indices), []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frames.append(_scaled(frame, size))
            if len(frames) == len(indices):
                break
    return np.stack(frames)


def _pyav_seeking(path: Path, indices: list[int], size: int) -> Frames:
    frames = []
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        stream.thread_type = "AUTO"
        start = stream.start_time or 0
        for index in indices:
            target = start + round(Fraction(index, _FPS) / stream.time_base)
            container.seek(target, stream=stream)
            frame = next(f for f in container.decode(stream) if f.pts is not None and f.pts >= target)
            frames.append(_scaled(frame, size))
    return np.stack(frames)


def _load_torchcodec() -> Any:
    # None if torchcodec is not installed or finds no FFmpeg libraries.
    try:
        import torchcodec.decoders  # type: ignore[import-not-found, unused-ignore]
    except (ImportError, RuntimeError, OSError):
        return None
    return torchcodec.decoders


def _torchcodec(torchcodec: Any, path: Path, indices: list[int], size: int) -> Frames:
    decoder = torchcodec.VideoDecoder(
        str(path),
        dimension_order="NHWC",
        num_ffmpeg_threads=0,
        seek_mode="approximate",
        transforms=[import_module("torchcodec.transforms").Resize((size, size))],
    )
    frames: Frames = decoder.get_frames_at(indices).data.numpy()
    return frames


# --- videos --------------------------------------------------------------------------------------------------------


def _write(path: Path, video: _Video, seed: int) -> Path:
    # The texture changes its colours every two seconds, so that frames differ between keyframes. It is drawn in YUV
    # 4:2:0, because converting from RGB takes longer than encoding.
    rng = np.random.default_rng(seed)
    width, height = video.width, video.height
    planes = [
        np.kron(rng.integers(0, 256, (height // 16 + 20, width // 16 + 20), np.uint8), np.ones((side, side), np.uint8))
        for side in (16, 8, 8)
    ]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(video.codec, rate=_FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size, stream.options = video.gop, video.options
        for number in range(video.seconds * _FPS):
            x, y = number * 4 % 300 // 2, number * 2 % 300 // 2
            luma, *chroma = planes if number // (2 * _FPS) % 2 == 0 else (planes[0], planes[2], planes[1])
            parts = [luma[2 * y : 2 * y + height, 2 * x : 2 * x + width]]
            parts += [plane[y : y + height // 2, x : x + width // 2] for plane in chroma]
            flat = np.concatenate([part.reshape(-1) for part in parts])
            frame = av.VideoFrame.from_ndarray(flat.reshape(height * 3 // 2, width), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, _FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
