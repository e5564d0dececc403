"""Validates what a decode process says, which a file may have taken over."""

from __future__ import annotations

import math
import mmap
import re
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from vidlex.model.types import FrameBatch, FrameContent, VideoInfo
from vidlex.service.errors import (
    InvalidParameter,
    ResolutionTooLarge,
    UndecodableVideo,
    UnsupportedMedia,
    VideoTooLong,
    VidlexError,
)

_log = structlog.get_logger("vidlex.decode")

_ERRORS: dict[str, type[VidlexError]] = {
    error.code: error
    for error in (UndecodableVideo, VideoTooLong, ResolutionTooLarge, UnsupportedMedia, InvalidParameter)
}
_MAX_MESSAGE_CHARS = 500
_MAX_CODEC_CHARS = 32
_MAX_INT = 2**53  # the largest that JSON readers keep exact
_MAX_WARNINGS = 16
_WARNING_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DECODER = re.compile(r"[ -~]{1,120}")


class ReplyReader:
    """The replies about one file, in order. Raises ValueError, KeyError or TypeError for a malformed one.

    Chunk i of at most ``max_chunk_frames`` frames lies in slot i % ``num_slots`` of ``memory``. The file has at most
    ``max_frames`` frames, and a multiple of ``num_frames`` unless that is None.
    """

    def __init__(
        self,
        memory: mmap.mmap,
        *,
        side: int,
        max_chunk_frames: int,
        num_slots: int,
        max_frames: int,
        num_frames: int | None,
    ) -> None:
        self._memory = memory
        self._side = side
        self._max_chunk_frames = max_chunk_frames
        self._num_slots = num_slots
        self._max_frames = max_frames
        self._num_frames = num_frames
        self._num_chunks = 0
        self._num_read = 0
        self._last_ms = 0

    def chunk(self, reply: dict[str, Any]) -> FrameBatch:
        times = tuple(_int(t) for t in _list(reply["timestamps_ms"]))
        num = len(times)
        if not 1 <= num <= self._max_chunk_frames or self._num_read + num > self._max_frames:
            raise ValueError(f"{num} more frames than {self._num_read}, of at most {self._max_frames}")
        if times[0] < self._last_ms:
            raise ValueError("times decrease from one chunk to the next")
        num_failed = _int(reply["num_failed"])
        if num_failed > num:
            raise ValueError(f"{num_failed} of {num} frames failed")
        batch = FrameBatch(  # checks that times do not decrease
            self._frames(num),
            times,
            _video_info(reply["video"]),
            _warnings(reply["warnings"]),
            num_failed,
            None if reply["content"] is None else _content(reply["content"], num),
        )
        self._last_ms = times[-1]
        self._num_read += num
        self._num_chunks += 1
        return batch

    def finish(self, reply: dict[str, Any]) -> None:
        """The reply that is no chunk. Raises the error that it states."""
        raise_error(reply, self._max_frames)
        if not reply["end"]:
            raise ValueError(f"neither a chunk nor the end: {sorted(reply)[:10]}")
        if self._num_read < 1 or self._num_read % (self._num_frames or 1):
            raise ValueError(f"{self._num_read} frames instead of a multiple of {self._num_frames}")

    def _frames(self, num: int) -> NDArray[np.uint8]:
        side = self._side
        frame_bytes = side * side * 3
        start = (self._num_chunks % self._num_slots) * self._max_chunk_frames * frame_bytes
        return np.frombuffer(self._memory, np.uint8, num * frame_bytes, start).reshape(num, side, side, 3)


def raise_error(reply: dict[str, Any], max_frames: int) -> None:
    if reply.get("error") == "too_many_frames":
        raise too_many_frames(max_frames)
    if "error" in reply:
        error_type = _ERRORS.get(str(reply["error"]), UndecodableVideo)
        raise error_type(str(reply.get("message", ""))[:_MAX_MESSAGE_CHARS], internal=str(reply.get("internal", "")))
    if "failed" in reply:
        _log.error("decode_failed", error=str(reply["failed"]))
        raise UndecodableVideo(internal=str(reply["failed"]))


def too_many_frames(max_frames: int) -> InvalidParameter:
    return InvalidParameter(
        f"The request would sample more than {max_frames} frames; lower num_frames, raise segment_ms or shorten the "
        "window",
        max_frames=max_frames,
    )


def decoder_name(value: object) -> str:
    if not isinstance(value, str) or not _DECODER.fullmatch(value):
        raise ValueError("not the name of a decoder")
    return value


def _video_info(video: Any) -> VideoInfo:
    fps = float(video["fps"])
    if not (math.isfinite(fps) and fps >= 0):
        raise ValueError(f"{fps} frames per second")
    return VideoInfo(
        duration_ms=_int(video["duration_ms"]),
        width=_int(video["width"]),
        height=_int(video["height"]),
        fps=fps,
        codec=str(video["codec"])[:_MAX_CODEC_CHARS],
        num_frames=_int(video["num_frames"]),
        num_bytes=_int(video["num_bytes"]),
        start_ms=_int(video["start_ms"]),
    )


def _warnings(value: Any) -> tuple[tuple[str, str], ...]:
    warnings = _list(value)
    if len(warnings) > _MAX_WARNINGS:
        raise ValueError(f"{len(warnings)} warnings")
    for code, sentence in map(_list, warnings):
        if not isinstance(code, str) or not isinstance(sentence, str) or not _WARNING_CODE.fullmatch(code):
            raise ValueError("not a warning")
    return tuple((code, sentence[:_MAX_MESSAGE_CHARS]) for code, sentence in warnings)


def _content(value: Any, num_frames: int) -> FrameContent:
    names = ("is_blank", "is_repeated", "starts_shot")
    return FrameContent(*(_flags(value[name], num_frames) for name in names))


def _flags(value: Any, num: int) -> NDArray[np.bool_]:
    flags = _list(value)
    if len(flags) != num or any(flag not in (0, 1) for flag in flags):
        raise ValueError(f"not {num} flags of 0 or 1")
    return np.array(flags, np.bool_)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} is no list")
    return value


def _int(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_INT:  # not bool
        raise ValueError("not an integer from 0 to 2 ** 53")
    return value
