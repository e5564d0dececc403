"""From a video file to the frames that a model looks at: ``decode_frames``.

The file comes from a stranger, so it is judged before it is decoded: its first bytes name the demuxer (nothing else
may open it), the container's claims are checked without any decoder, then one frame is decoded under a pixel limit,
because a stream may be larger than its container says. Only then does decord decode the sampled frames, scaled by
FFmpeg to the model's size on the way. A native decoder can still crash or hang: run this in a process that can be
killed when the file is not your own.

PyAV does the judging and decord the decoding. No torch here: a decode process imports this file.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import decord
import numpy as np
from numpy.typing import NDArray

from model.types import FrameBatch, FrameGeometry, FramePolicy, VideoInfo
from model.video.framing import fit_square, scaled_size
from model.video.sampling import centre_times, select_frames
from model.video.sniff import CONTAINERS, HEAD_BYTES, demuxer_for

DecodeCode = Literal[
    "undecodable_video", "video_too_long", "resolution_too_large", "unsupported_media", "invalid_parameter"
]

CODECS = frozenset(
    ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "h263", "prores", "dnxhd")
)
"""Video codecs that are decoded; FFmpeg has hundreds more, few of them well tested against hostile data."""

_PROBE_PACKETS = 64
"""Packets tried until one of them yields a first frame."""


@dataclass(frozen=True)
class DecodeLimits:
    """What a file may ask for at most. Everything is refused from the header where the header tells."""

    max_bytes: int = 5 * 2**30
    max_pixels: int = 8192 * 4320
    max_side: int = 8192
    max_aspect_ratio: float = 32.0
    max_duration_ms: int = 2 * 3600 * 1000
    max_fps: float = 240.0
    max_frames: int = 2048
    """Frames sampled in one call."""
    max_file_frames: int = 2_000_000
    """Frames in the file: each costs memory for its time stamp."""
    max_streams: int = 32


class DecodeError(Exception):
    """``str(error)`` is written for a stranger; ``internal`` holds the native text, for the log alone."""

    def __init__(self, code: DecodeCode, message: str, *, internal: str = "") -> None:
        super().__init__(message)
        self.code: DecodeCode = code
        self.internal = internal

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.code, str(self), self.internal)


def _rebuild(code: DecodeCode, message: str, internal: str) -> DecodeError:
    return DecodeError(code, message, internal=internal)


@dataclass(frozen=True)
class _Header:
    """What the container claims and the first frame proves."""

    info: VideoInfo
    duration_ms: int | None
    """Claimed length of the video stream; None if the file does not say."""
    duration_is_shared: bool
    """The claim is the container's, and another stream may be what lasts that long."""
    demuxer: str


def probe(path: Path, limits: DecodeLimits = DecodeLimits()) -> VideoInfo:
    """Facts about a file from its header and first frame, in a few milliseconds. Raises `DecodeError`."""
    return _read_header(path, limits).info


def decode_frames(
    path: Path,
    *,
    geometry: FrameGeometry,
    num_frames: int,
    policy: FramePolicy = "uniform",
    start_ms: int | None = None,
    end_ms: int | None = None,
    limits: DecodeLimits = DecodeLimits(),
    num_threads: int = 0,
) -> FrameBatch:
    """``num_frames`` frames of the window [start_ms, end_ms) (default: the whole video), upright, as RGB squares.

    Which frames: `model.video.sampling`. A file that was cut off is decoded as long as every sampled time is still
    there. ``num_threads`` = 0 lets the decoder choose. Raises `DecodeError`, or OSError if the file cannot be read.
    """
    _check_parameters(num_frames, policy, start_ms, end_ms, limits)
    header = _read_header(path, limits)
    info = header.info
    width, height = scaled_size(geometry, info.width, info.height)
    try:
        reader = decord.VideoReader(str(path.absolute()), width=width, height=height, num_threads=num_threads)
        stored = len(reader)
        _check_file_frames(stored, limits)
        times = np.rint(reader.get_frame_timestamp(np.arange(stored)) * 1000.0).astype(np.int64)
        starts_ms = np.maximum.accumulate(times[:, 0])
        duration_ms = _true_duration(path, header, int(max(times[:, 1].max(), starts_ms[-1] + 1)), stored, limits)
        start, end = _window(start_ms, end_ms, duration_ms)
        _check_present(centre_times(num_frames, start, end), times, duration_ms)
        indices = select_frames(
            starts_ms,
            num_frames=num_frames,
            start_ms=start,
            end_ms=end,
            policy=policy,
            keyframes=reader.get_key_indices() if policy == "keyframes" else (),
        )
        frames = _read_frames(reader, indices, width, height, geometry.image_size)
    except DecodeError:
        raise
    except Exception as error:  # decord raises its own errors, RuntimeError, AssertionError and StopIteration
        raise DecodeError(
            "undecodable_video",
            "The video stream cannot be decoded: its data is damaged or incomplete.",
            internal=f"{type(error).__name__}: {error}",
        ) from error
    fps = info.fps or stored * 1000 / duration_ms
    return FrameBatch(
        frames,
        tuple(int(t) for t in starts_ms[indices]),
        VideoInfo(duration_ms, info.width, info.height, fps, info.codec, stored, info.num_bytes),
    )


def _read_frames(
    reader: Any, indices: NDArray[np.int64], width: int, height: int, image_size: int
) -> NDArray[np.uint8]:
    """Frame by frame rather than ``get_batch``: as fast, no second copy of all frames, and right for every width.

    decord hands out rows that FFmpeg padded for alignment and takes the padding for more channels when it happens
    to be a multiple of the width (96 pixels: four "channels"); ``get_batch`` fails on them, so undo it here.
    """
    frames = np.empty((len(indices), image_size, image_size, 3), np.uint8)
    for place, index in enumerate(indices):
        if place and index == indices[place - 1]:
            frames[place] = frames[place - 1]
            continue
        reader.seek_accurate(int(index))
        rows = reader.next().asnumpy().reshape(height, -1)
        fit_square(rows[:, : 3 * width].reshape(height, width, 3), frames[place])
    return frames


# --- judging a file ----------------------------------------------------------------------------------------------


def _read_header(path: Path, limits: DecodeLimits) -> _Header:
    num_bytes, demuxer = _sniff(path, limits)
    try:
        with _open(path, demuxer) as container:
            return _judge(container, demuxer, num_bytes, limits)
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        raise DecodeError(
            "undecodable_video",
            "The file is damaged or incomplete: its header cannot be read.",
            internal=f"{type(error).__name__}: {error}",
        ) from error


def _sniff(path: Path, limits: DecodeLimits) -> tuple[int, str]:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise DecodeError("unsupported_media", "This is not a file.")
    if facts.st_size == 0:
        raise DecodeError("undecodable_video", "The file is empty.")
    if facts.st_size > limits.max_bytes:
        raise DecodeError(
            "video_too_long", f"The file has {facts.st_size} bytes; at most {limits.max_bytes} are allowed."
        )
    with path.open("rb") as file:
        demuxer = demuxer_for(file.read(HEAD_BYTES))
    if demuxer is None:
        raise DecodeError("unsupported_media", f"The file is not a video of a known kind ({CONTAINERS}).")
    return facts.st_size, demuxer


def _open(path: Path, demuxer: str) -> Any:
    # an absolute path cannot be taken for a protocol; without a permitted codec the header is read, nothing decoded
    return av.open(
        os.fspath(path.absolute()),
        format=demuxer,
        options={"protocol_whitelist": "file", "codec_whitelist": "none"},
    )


def _judge(container: Any, demuxer: str, num_bytes: int, limits: DecodeLimits) -> _Header:
    if len(container.streams) > limits.max_streams:
        raise DecodeError(
            "unsupported_media",
            f"The file has {len(container.streams)} streams; at most {limits.max_streams} are allowed.",
        )
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise DecodeError("undecodable_video", "The file has no video stream.")
    decoder = stream.codec_context
    codec = decoder.codec.canonical_name
    if codec not in CODECS:
        raise DecodeError("unsupported_media", "The video's codec is not supported.", internal=codec)

    duration_ms, shared = _claimed_duration(container, stream)
    fps = float(stream.average_rate or 0)
    num_frames = stream.frames or round((duration_ms or 0) * fps / 1000)
    _check_size(decoder.width, decoder.height, limits)
    _check_duration(duration_ms or 0, limits)
    _check_file_frames(num_frames, limits)
    if fps > limits.max_fps and num_frames > 16:  # a rate means little for a handful of frames
        raise DecodeError(
            "undecodable_video", f"The video has {fps:.0f} frames per second; at most {limits.max_fps:g} are allowed."
        )
    width, height = _first_frame_size(container, stream, limits)
    _check_size(width, height, limits)
    info = VideoInfo(duration_ms or 0, width, height, fps, codec, num_frames, num_bytes)
    return _Header(info, duration_ms, shared, demuxer)


def _claimed_duration(container: Any, stream: Any) -> tuple[int | None, bool]:
    """(milliseconds, is it the whole container's). Matroska keeps a stream's own length in a tag, if anywhere."""
    if stream.duration:
        return round(stream.duration * stream.time_base * 1000), False
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return round((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * 1000), False
    except (ValueError, OverflowError):
        pass
    if container.duration:
        return round(container.duration / 1000), len(container.streams) > 1
    return None, False


def _first_frame_size(container: Any, stream: Any, limits: DecodeLimits) -> tuple[int, int]:
    """Upright (width, height) of the first frame that decodes, with a decoder that refuses larger pictures."""
    decoder = stream.codec_context
    decoder.options = {"max_pixels": str(limits.max_pixels)}
    decoder.thread_count, decoder.thread_type = 1, "NONE"
    decoder.skip_frame, failure = "NONKEY", ""
    for count, packet in enumerate(container.demux(stream)):
        try:
            # drain after each packet: a decoder that reorders would hold the frame back for several more
            frames = decoder.decode(packet) or (decoder.decode(None) if packet.size else [])
            decoder.flush_buffers()
        except (av.FFmpegError, ValueError) as error:
            failure, frames = f"{type(error).__name__}: {error}", []
        for frame in frames:
            turned = frame.rotation % 180 == 90
            return (frame.height, frame.width) if turned else (frame.width, frame.height)
        _check_size(decoder.width, decoder.height, limits)
        if count == _PROBE_PACKETS:
            break
    raise DecodeError(
        "undecodable_video", "No frame of the video can be decoded: its data is damaged or missing.", internal=failure
    )


def _check_size(width: int, height: int, limits: DecodeLimits) -> None:
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise DecodeError(
            "resolution_too_large",
            f"The video is {width}x{height} pixels; at most {limits.max_side} on a side "
            f"and {limits.max_pixels} in all are allowed.",
        )
    if min(width, height) > 0 and max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise DecodeError(
            "resolution_too_large",
            f"The video is {width}x{height} pixels; one side may be at most {limits.max_aspect_ratio:g} times the other.",
        )


def _check_duration(duration_ms: int, limits: DecodeLimits) -> None:
    if duration_ms > limits.max_duration_ms:
        raise DecodeError(
            "video_too_long",
            f"The video lasts {duration_ms / 1000:.0f} s; at most {limits.max_duration_ms / 1000:g} s are allowed.",
        )


def _check_file_frames(num_frames: int, limits: DecodeLimits) -> None:
    if num_frames > limits.max_file_frames:
        raise DecodeError(
            "video_too_long", f"The video has {num_frames} frames; at most {limits.max_file_frames} are allowed."
        )


# --- judging a request -------------------------------------------------------------------------------------------


def _check_parameters(
    num_frames: int, policy: str, start_ms: int | None, end_ms: int | None, limits: DecodeLimits
) -> None:
    if not 1 <= num_frames <= limits.max_frames:
        raise DecodeError(
            "invalid_parameter", f"num_frames must be between 1 and {limits.max_frames}, not {num_frames}."
        )
    if policy not in ("uniform", "keyframes"):
        raise DecodeError("invalid_parameter", "The frame policy must be uniform or keyframes.")
    if start_ms is not None and start_ms < 0:
        raise DecodeError("invalid_parameter", f"start_ms must not be negative, not {start_ms}.")
    if end_ms is not None and end_ms <= (start_ms or 0):
        raise DecodeError("invalid_parameter", f"end_ms must be greater than start_ms, not {end_ms}.")


def _window(start_ms: int | None, end_ms: int | None, duration_ms: int) -> tuple[int, int]:
    start, end = start_ms or 0, min(duration_ms if end_ms is None else end_ms, duration_ms)
    if start >= duration_ms:
        raise DecodeError(
            "invalid_parameter", f"start_ms is {start}, but the video is only {duration_ms} ms long."
        )
    return start, end


def _slack_ms(duration_ms: int, num_frames: int) -> int:
    """How far a claimed end may lie behind the last frame's before something is missing."""
    return max(500, 2 * duration_ms // num_frames)


def _true_duration(path: Path, header: _Header, seen_ms: int, num_frames: int, limits: DecodeLimits) -> int:
    """The video's length: as its frames show it, or as claimed if the end of the file is missing."""
    _check_duration(seen_ms, limits)
    claimed = header.duration_ms
    if claimed is None or claimed <= seen_ms + _slack_ms(seen_ms, num_frames):
        return seen_ms
    if header.duration_is_shared and _other_streams_reach(path, header.demuxer, claimed - 1000):
        return seen_ms  # nothing is missing: the sound simply lasts longer than the picture
    return claimed


def _other_streams_reach(path: Path, demuxer: str, time_ms: int) -> bool:
    with _open(path, demuxer) as container:
        container.seek(max(0, time_ms - 1000) * 1000)  # in microseconds
        for packet in container.demux():
            if packet.pts is not None and packet.pts * packet.time_base * 1000 >= time_ms:
                return True
    return False


def _check_present(wanted_ms: NDArray[np.int64], times: NDArray[np.int64], duration_ms: int) -> None:
    """Refuse if a sampled time lies behind the last frame of a file that was cut off."""
    end = int(times[:, 1].max())
    if wanted_ms[-1] >= end + _slack_ms(end, len(times)):
        raise DecodeError(
            "undecodable_video",
            f"The video is incomplete: it should last {duration_ms} ms, but its data ends after {end} ms.",
        )
