"""Validates an untrusted video file by its header, then by one frame, which may be larger than claimed."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import av

from vidlex.model.decode.frame_index import FrameIndex, index_frames
from vidlex.model.decode.limits import DecodeError, DecodeLimits, check_duration, check_file_frames, check_size
from vidlex.model.decode.sniff import CONTAINERS, HEAD_BYTES, demuxer_for
from vidlex.model.types import VideoInfo

# FFmpeg has hundreds more, few of them well tested against hostile data
CODECS = frozenset(
    ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "h263", "prores", "dnxhd")
)

_MAX_PROBE_PACKETS = 64


@dataclass(frozen=True)
class Header:
    info: VideoInfo
    duration_ms: int | None  # claimed for the video stream; None without a claim
    duration_is_shared: bool  # the claim is for the whole container, so another stream may be the longest
    demuxer: str
    rotation: int  # counter-clockwise degrees from the stored to the upright picture; ``info`` is upright
    index: FrameIndex | None  # None if not requested, or without a keyframe


def probe(path: Path, limits: DecodeLimits = DecodeLimits()) -> VideoInfo:
    """Reads the header and first frame, in a few milliseconds. Raises `DecodeError`, or OSError."""
    return read_header(path, limits, with_index=False).info


def read_header(path: Path, limits: DecodeLimits, *, with_index: bool) -> Header:
    # the index reads every packet of the file
    num_bytes, demuxer = _sniff(path, limits)
    try:
        with open_video(path, demuxer) as container:
            return _check_container(container, demuxer, num_bytes, limits, with_index)
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


def open_video(path: Path, demuxer: str) -> Any:
    # An absolute path cannot be parsed as a protocol. Without a permitted codec, opening reads the header but decodes
    # nothing.
    return av.open(
        os.fspath(path.absolute()),
        format=demuxer,
        options={"protocol_whitelist": "file", "codec_whitelist": "none"},
    )


def _check_container(container: Any, demuxer: str, num_bytes: int, limits: DecodeLimits, with_index: bool) -> Header:
    if len(container.streams) > limits.max_streams:
        raise DecodeError(
            "unsupported_media",
            f"The file has {len(container.streams)} streams; at most {limits.max_streams} are allowed.",
        )
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise DecodeError("undecodable_video", "The file has no video stream.")
    decoder = stream.codec_context
    codec = "" if decoder is None else decoder.codec.canonical_name
    if codec not in CODECS:
        raise DecodeError("unsupported_media", "The video's codec is not supported.", internal=codec)

    duration_ms, shared = _claimed_duration(container, demuxer, stream)
    fps = float(stream.average_rate or 0)
    num_frames = stream.frames or round((duration_ms or 0) * fps / 1000)
    check_size(decoder.width, decoder.height, limits)
    check_duration(duration_ms or 0, limits)
    check_file_frames(num_frames, limits)
    if fps > limits.max_fps and num_frames > 16:  # not for a few frames, whose rate is meaningless
        raise DecodeError(
            "undecodable_video", f"The video has {fps:.0f} frames per second; at most {limits.max_fps:g} are allowed."
        )
    read_packets: list[Any] = []
    packets = _intact_packets(container.demux(stream))
    first = _first_frame(packets, read_packets, decoder, limits)
    is_sideways = first.rotation % 180 == 90
    width, height = (first.height, first.width) if is_sideways else (first.width, first.height)
    check_size(width, height, limits)
    info = VideoInfo(duration_ms or 0, width, height, fps, codec, num_frames, num_bytes)
    index = index_frames(chain(read_packets, packets), stream.time_base, limits) if with_index else None
    return Header(info, duration_ms, shared, demuxer, first.rotation, index)


def _claimed_duration(container: Any, demuxer: str, stream: Any) -> tuple[int | None, bool]:
    """(milliseconds, whether the claim is for the whole container rather than the stream).

    Matroska stores the file's duration only, which FFmpeg repeats for each stream; most writers tag each stream's own.
    """
    tag = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag is not None:
        hours, minutes, seconds = tag.groups()
        return round((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * 1000), False
    if stream.duration and demuxer != "matroska":
        return round(stream.duration * stream.time_base * 1000), False
    if container.duration:
        return round(container.duration / 1000), len(container.streams) > 1
    return None, False


def decoder_options(limits: DecodeLimits) -> dict[str, str]:
    # FFmpeg counts rows as up to 64 pixels wider than they are
    return {"max_pixels": str(limits.max_pixels + 64 * limits.max_side)}


def _intact_packets(packets: Iterator[Any]) -> Iterator[Any]:
    with contextlib.suppress(av.FFmpegError):
        yield from packets


def _first_frame(packets: Iterator[Any], read_packets: list[Any], decoder: Any, limits: DecodeLimits) -> Any:
    decoder.options = decoder_options(limits)
    decoder.thread_count, decoder.thread_type = 1, "NONE"
    decoder.skip_frame, failure = "NONKEY", ""
    for packet in packets:
        read_packets.append(packet)
        try:
            # drain after each packet, or a reordering decoder would delay the frame by several packets
            frames = decoder.decode(packet) or (decoder.decode(None) if packet.size else [])
            decoder.flush_buffers()
        except (av.FFmpegError, ValueError) as error:
            failure, frames = f"{type(error).__name__}: {error}", []
        if frames:
            return frames[0]
        check_size(decoder.width, decoder.height, limits)
        if len(read_packets) > _MAX_PROBE_PACKETS:
            break
    raise DecodeError(
        "undecodable_video", "No frame of the video can be decoded: its data is damaged or missing.", internal=failure
    )


def other_streams_reach(path: Path, demuxer: str, time_ms: int) -> bool:
    with open_video(path, demuxer) as container:
        container.seek(max(0, time_ms - 1000) * 1000)  # in microseconds
        for packet in container.demux():
            if packet.pts is not None and packet.pts * packet.time_base * 1000 >= time_ms:
                return True
    return False
