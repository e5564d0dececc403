"""Opens an untrusted file with the demuxer that its bytes call for, and tells when its video should end."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import av

from vidlex.model.decode.frame_index import BROADCAST_DEMUXERS
from vidlex.model.decode.limits import DecodeLimits
from vidlex.model.decode.source import VideoSource, open_unbuffered

_BUFFER_BYTES = 128 * 1024  # larger than PyAV's, since each read takes the interpreter's lock
_FFMPEG_NAMES = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}


def open_video(source: VideoSource, demuxer: str) -> Any:
    # FFmpeg is given the file's bytes and opens nothing itself. Without a permitted codec, opening reads the header but
    # decodes nothing.
    options = {
        "protocol_whitelist": "none",
        "codec_whitelist": "none",
        "format_whitelist": _FFMPEG_NAMES.get(demuxer, demuxer),  # none inside another
    }
    return av.open(open_unbuffered(source), format=demuxer, options=options, buffer_size=_BUFFER_BYTES)


def decoder_options(limits: DecodeLimits) -> dict[str, str]:
    # FFmpeg counts rows as up to 64 pixels wider than they are
    return {"max_pixels": str(limits.max_pixels + 64 * limits.max_side)}


def intact_packets(container: Any, *streams: Any) -> Iterator[Any]:
    """The packets of ``streams`` (none: of all) up to the first that the demuxer cannot read, without end markers.

    A packet that the end of the file cuts does not count. In broadcast streams a corrupt packet may also follow a gap.
    """
    is_broadcast = container.format.name in BROADCAST_DEMUXERS
    # PyAV raises IndexError at the end of a file in which more streams have appeared
    with contextlib.suppress(av.FFmpegError, IndexError):
        for packet in container.demux(*streams):
            if packet.is_corrupt and not is_broadcast:
                return
            if packet.size:
                yield packet


def claimed_end_seconds(container: Any, demuxer: str, stream: Any) -> tuple[float | None, bool]:
    """(when the video ends, on the clock of its packets; whether the claim is for the whole file).

    Matroska stores the time at which the file ends, and most writers tag each stream's own. MP4 and AVI list their
    frames. FFmpeg takes the durations of other containers from their last packets, or from what a live recorder wrote.
    """
    if demuxer == "matroska":
        tag = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
        if tag is not None:
            hours, minutes, seconds = tag.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds), False
        return (container.duration / av.time_base, len(container.streams) > 1) if container.duration else (None, False)
    if demuxer in ("mov", "avi") and stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base), False
    return None, False


def other_streams_reach(source: VideoSource, demuxer: str, seconds: float) -> bool:
    """Whether a stream of the file has a packet at or after ``seconds`` on its clock."""
    with open_video(source, demuxer) as container:
        container.seek(round(max(0.0, seconds - 1) * av.time_base))
        for packet in intact_packets(container):
            if packet.pts is not None and float(packet.pts * packet.time_base) >= seconds:
                return True
    return False
