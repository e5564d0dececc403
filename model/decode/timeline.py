"""How long a video lasts, and whether its file is whole."""

from __future__ import annotations

from vidlex.model.decode.container import other_streams_reach
from vidlex.model.decode.frame_index import BROADCAST_DEMUXERS, FrameIndex
from vidlex.model.decode.limits import DecodeLimits, check_duration
from vidlex.model.decode.probe import Header

Warnings = tuple[tuple[str, str], ...]  # (code, sentence)


def duration_of(header: Header, index: FrameIndex, limits: DecodeLimits) -> tuple[int, Warnings]:
    """(milliseconds from the first shown frame to the end of the picture, warnings). Raises DecodeError if too long.

    A claim beyond the last frame is believed if the file is whole and no sound explains it: its last frame stands, as
    in recordings of a screen on which nothing moves. Claims beyond the limit are not.
    """
    shown_ms = index.end_ms
    check_duration(shown_ms, limits)
    warnings: Warnings = ()
    if header.has_second_recording:
        warnings = (("second_recording", "Another recording follows in the file; only the first one was read"),)
    claimed_ms = _claimed_ms(header, index)
    is_later = claimed_ms > shown_ms + _tolerance_ms(shown_ms, len(index))
    if header.ends_early or (is_later and header.num_claimed_frames > len(index)):
        claim = f"it should last {claimed_ms} ms, but " if is_later else ""
        truncated = ("truncated_video", f"The file is incomplete: {claim}its data ends after {shown_ms} ms")
        return shown_ms, (*warnings, truncated)
    if not is_later or claimed_ms > limits.max_duration_ms:
        return shown_ms, warnings
    assert header.claimed_end_seconds is not None
    if header.end_is_shared and other_streams_reach(header.source, header.demuxer, header.claimed_end_seconds - 1):
        return shown_ms, warnings  # another stream is longer than the picture
    still = ("still_end", f"Nothing follows {shown_ms} ms: the last frame stands until {claimed_ms} ms")
    return claimed_ms, (*warnings, still)


def start_offset_ms(header: Header, index: FrameIndex) -> int:
    """When the first frame is shown, in milliseconds of a player's clock.

    Browsers keep the clock of the file. That of a broadcast stream begins anywhere: players count from its start.
    """
    if header.demuxer == "avi":  # has no clock: FFmpeg counts frames in the order of decoding
        return 0
    clock_start = header.container_start_seconds if header.demuxer in BROADCAST_DEMUXERS else 0.0
    return max(0, round((float(index.pts[0] * header.time_base) - clock_start) * 1000))


def _claimed_ms(header: Header, index: FrameIndex) -> int:
    if header.claimed_end_seconds is None:
        return 0
    milliseconds = (header.claimed_end_seconds - float(index.pts[0] * header.time_base)) * 1000
    return round(min(max(milliseconds, 0.0), 1e15))


def _tolerance_ms(duration_ms: int, num_frames: int) -> int:
    return max(500, 2 * duration_ms // num_frames)
