"""Validates an untrusted video file by its header, then by one frame, which may be larger than claimed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, pairwise
from typing import Any

import av

from vidlex.model.decode.container import claimed_end_seconds, decoder_options, intact_packets, open_video
from vidlex.model.decode.containers.animated_webp import AnimatedWebp, check_composition, read_webp
from vidlex.model.decode.containers.encryption import encryption_of
from vidlex.model.decode.containers.formats import CODECS, WEBP
from vidlex.model.decode.containers.sniff import CONTAINERS, demuxer_of
from vidlex.model.decode.containers.truncation import container_ends_early, has_second_recording
from vidlex.model.decode.frame_index import FrameIndex, PacketTable, index_of_pictures
from vidlex.model.decode.limits import DecodeError, DecodeLimits, check_size
from vidlex.model.decode.orientation import Orientation, display_size, orientation_of
from vidlex.model.decode.scan import decode_tolerantly
from vidlex.model.decode.source import VideoSource, num_bytes_of

_MAX_KEYFRAME_ATTEMPTS = 4
_MAX_FIRST_FRAMES = 6  # decoded to learn how the file stores its frames
_MAX_FIRST_PACKETS = 300
_ATTACHED = ("attachment", "data")


@dataclass(frozen=True, eq=False)
class Header:
    """A file's facts as its header, packets and first frame tell them."""

    source: VideoSource
    demuxer: str
    codec: str
    num_bytes: int
    time_base: Fraction
    pixel_aspect: Fraction | None
    width: int  # of the shown picture
    height: int
    orientation: Orientation
    container_start_seconds: float
    claimed_end_seconds: float | None  # on the clock of the packets; None without a claim
    end_is_shared: bool  # the claim is for the whole container, so another stream may be the longest
    num_claimed_frames: int  # 0: unknown
    ends_early: bool  # the container's structure says so
    has_second_recording: bool  # which is not read
    index: FrameIndex | None  # None if the packets do not tell the frames
    webp: AnimatedWebp | None = None

    def as_shown_by(self, frame: Any, limits: DecodeLimits) -> Header:
        """With size and orientation of a decoded frame. Raises DecodeError for one that is too large."""
        check_size(frame.width, frame.height, limits)
        orientation = orientation_of(frame)
        width, height = display_size(frame.width, frame.height, self.pixel_aspect, orientation)
        if _is_too_large(width, height, limits):  # by the aspect of its pixels only, which is a writer's mistake
            width, height = display_size(frame.width, frame.height, None, orientation)
        return replace(self, width=width, height=height, orientation=orientation)


def read_header(source: VideoSource, limits: DecodeLimits) -> Header:
    """Reads every packet of the file. Raises DecodeError, or OSError if the file cannot be read."""
    num_bytes = _check_file(source, limits)
    with source.open("rb") as file:
        demuxer = demuxer_of(file)
    if demuxer is None:
        raise DecodeError("unsupported_media", f"The file is not a video of a known kind ({CONTAINERS}).")
    if demuxer == WEBP:
        return _header_of_webp(source, num_bytes, limits)
    scheme = encryption_of(source, demuxer)
    if scheme is not None:
        raise DecodeError("unsupported_media", f"The video is encrypted: {scheme}.")
    try:
        with open_video(source, demuxer) as container:
            return _read(container, source, demuxer, num_bytes, limits)
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        raise DecodeError(
            "undecodable_video",
            "The file is damaged or incomplete: its header cannot be read.",
            internal=f"{type(error).__name__}: {error}",
        ) from error


def _header_of_webp(source: VideoSource, num_bytes: int, limits: DecodeLimits) -> Header:
    webp = read_webp(source, limits)
    return Header(
        source=source,
        demuxer=WEBP,
        codec=WEBP,
        num_bytes=num_bytes,
        time_base=Fraction(1, 1000),
        pixel_aspect=None,
        width=webp.width,
        height=webp.height,
        orientation=Orientation(),
        container_start_seconds=0.0,
        claimed_end_seconds=None,
        end_is_shared=False,
        num_claimed_frames=0,
        ends_early=bool(container_ends_early(source, WEBP)),
        has_second_recording=False,
        index=index_of_pictures(webp.starts_ms, webp.ends_ms),
        webp=webp,
    )


def _check_file(source: VideoSource, limits: DecodeLimits) -> int:
    num_bytes = num_bytes_of(source)
    if num_bytes == 0:
        raise DecodeError("undecodable_video", "The file is empty.")
    if num_bytes > limits.max_bytes:
        raise DecodeError("video_too_long", f"The file has {num_bytes} bytes; at most {limits.max_bytes} are allowed.")
    return num_bytes


def _read(container: Any, source: VideoSource, demuxer: str, num_bytes: int, limits: DecodeLimits) -> Header:
    num_streams = sum(stream.type not in _ATTACHED for stream in container.streams)  # subtitles' fonts are no streams
    if num_streams > limits.max_streams:
        raise DecodeError(
            "unsupported_media", f"The file has {num_streams} streams; at most {limits.max_streams} are allowed."
        )
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise DecodeError("undecodable_video", "The file has no video stream.")
    decoder = stream.codec_context
    codec = "" if decoder is None else decoder.codec.canonical_name
    if codec not in CODECS:
        raise DecodeError("unsupported_media", "The video's codec is not supported.", internal=codec)
    check_size(decoder.width, decoder.height, limits)

    claimed_end, is_shared = claimed_end_seconds(container, demuxer, stream)
    table = PacketTable(limits)
    first = _first_frame(intact_packets(container, stream), table, decoder, limits)
    if demuxer == "gif":
        check_composition(len(table.rows), decoder.width, decoder.height)
    half_frame = 0.0
    if first is None:
        first, half_frame = _first_of_several(source, demuxer, limits, table)
    index = None
    if first is not None:
        index = table.index(
            stream.time_base,
            demuxer,
            reorders=decoder.has_b_frames,
            can_seek=not (demuxer == "mpeg" and codec == "mpeg1video"),
            half_frame=half_frame,
        )
    if demuxer == "avi" and stream.frames > len(table.rows):
        index = None  # frames are counted, but found by the file's list of them, which knows the lost ones
    header = Header(
        source=source,
        demuxer=demuxer,
        codec=codec,
        num_bytes=num_bytes,
        time_base=stream.time_base,
        pixel_aspect=stream.sample_aspect_ratio or decoder.sample_aspect_ratio,
        width=decoder.width,
        height=decoder.height,
        orientation=Orientation(),
        container_start_seconds=(container.start_time or 0) / av.time_base,
        claimed_end_seconds=claimed_end,
        end_is_shared=is_shared,
        num_claimed_frames=stream.frames,
        ends_early=bool(container_ends_early(source, demuxer)),
        has_second_recording=has_second_recording(source, demuxer),
        index=index if index is not None and index.has_exact_times else None,
    )
    return header if first is None else header.as_shown_by(first, limits)


def _is_too_large(width: int, height: int, limits: DecodeLimits) -> bool:
    try:
        check_size(width, height, limits)
    except DecodeError:
        return True
    return False


def _first_frame(packets: Iterator[Any], table: PacketTable, decoder: Any, limits: DecodeLimits) -> Any:
    """A frame that decodes from a single packet, or None. Adds all packets to ``table``."""
    decoder.options = decoder_options(limits)
    decoder.thread_count, decoder.thread_type = 1, "NONE"
    decoder.skip_frame, first, num_attempts = "NONKEY", None, 0
    for packet in packets:
        table.add((packet,))
        if not packet.is_keyframe:
            continue
        num_attempts += 1
        with contextlib.suppress(av.FFmpegError, ValueError):
            # drain after each packet, or a reordering decoder would delay the frame by several packets
            first = next(iter(decoder.decode(packet) or decoder.decode(None)), None)
            decoder.flush_buffers()
        if first is None:
            check_size(decoder.width, decoder.height, limits)
        if first is not None or num_attempts == _MAX_KEYFRAME_ATTEMPTS:
            break
    table.add(packets)
    return first


def _first_of_several(source: VideoSource, demuxer: str, limits: DecodeLimits, table: PacketTable) -> tuple[Any, float]:
    """(a frame that needs several packets, or None; ticks between the fields of a frame, or 0).

    Interlaced H.264 may store the two fields of a frame in two packets.
    """
    decoded = decode_tolerantly(source, demuxer, limits, num_threads=1, max_packets=_MAX_FIRST_PACKETS)
    frames = list(islice(decoded, _MAX_FIRST_FRAMES))
    if not frames:
        return None, 0.0
    stored = [row[0] for row in table.rows]
    times = [frame.pts for frame in frames]
    if len(times) < 2 or any(time is None for time in times) or times[0] not in stored:
        return frames[0], 0.0
    period = (times[-1] - times[0]) / (len(times) - 1)
    inside = sum(times[0] <= time < times[-1] for time in stored)
    is_paired = inside == 2 * (len(times) - 1) and all(abs(b - a - period) <= 1 for a, b in pairwise(times))
    return frames[0], period / 2 if is_paired else 0.0
