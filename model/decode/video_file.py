"""An opened video file: its index, its duration, and pictures of any of its frames in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.containers.animated_webp import AnimatedWebp
from vidlex.model.decode.frame_index import FrameIndex, milliseconds
from vidlex.model.decode.framing import fit_square, scaled_size
from vidlex.model.decode.limits import DecodeError, DecodeLimits, no_frame
from vidlex.model.decode.orientation import Orientation
from vidlex.model.decode.probe import read_header
from vidlex.model.decode.readers import ReaderError, ReadFrame, read_by_time
from vidlex.model.decode.sampling import Indices
from vidlex.model.decode.scaler import Picture, Scaler
from vidlex.model.decode.scan import CountedPictures, Scan, decode_tolerantly, scan_frames
from vidlex.model.decode.source import VideoSource
from vidlex.model.decode.timeline import duration_of, start_offset_ms
from vidlex.model.decode.torchcodec_reader import read_by_torchcodec
from vidlex.model.types import DecoderName, FrameGeometry, VideoInfo

_MAX_PARALLEL_PIXELS = 4096 * 2304  # larger pictures use one decoder: each holds up to about twenty of them
_MAX_THREADS = 16  # FFmpeg's maximum; 64 threads exceeded the 2 GiB of a decode process at 8192x4320
_WITHOUT_TIMES = ("avi", "mpeg", "mpegvideo")  # torchcodec takes other frames of these for those of a time
_MAX_BUSIEST_SHARE = 0.75  # several decoders are used only if the busiest has at most this fraction of the work


@dataclass(frozen=True, eq=False)
class Pictures:
    frames: NDArray[np.uint8]  # [T, size, size, 3]
    timestamps_ms: tuple[int, ...]  # [T]
    num_failed: int  # frames whose place a neighbour took


class VideoFile:
    """Frames are found by the packets' index, or, where that fails, by decoding the whole file (``scan``)."""

    def __init__(
        self, source: VideoSource, limits: DecodeLimits, *, num_threads: int = 0, decoder: DecoderName = "auto"
    ) -> None:
        """Raises DecodeError, or OSError if the file cannot be read."""
        self._limits = limits
        self._threads = min(num_threads or os.cpu_count() or 1, _MAX_THREADS)
        self._header = read_header(source, limits)
        self._can_use_torchcodec = decoder == "torchcodec" and self._header.demuxer not in _WITHOUT_TIMES
        self._scan: Scan | None = None
        self._numbers = np.zeros(0, np.int64)  # of the scan's frames, for each frame of ``index``
        self._is_missing = np.zeros(0, np.bool_)  # whether that is another frame, since it cannot be decoded
        self._counted: CountedPictures | None = None
        self._webp: _WebpPictures | None = None
        if self._header.index is None:
            self.scan()
        else:
            self._use(self._header.index)

    def _use(self, index: FrameIndex) -> None:
        self.index = index
        header = self._header
        self.duration_ms, self.warnings = duration_of(header, index, self._limits)
        self.info = VideoInfo(
            duration_ms=self.duration_ms,
            width=header.width,
            height=header.height,
            fps=index.fps or 1000 / self.duration_ms,
            codec=header.codec,
            num_frames=len(index),
            num_bytes=header.num_bytes,
            start_ms=start_offset_ms(header, index),
        )

    @property
    def is_scanned(self) -> bool:
        return self._scan is not None

    def scan(self, reason: str = "") -> None:
        """Decode the whole file and index what is shown. Raises DecodeError if nothing is."""
        header = self._header
        try:
            scan = scan_frames(header.source, header.demuxer, header.time_base, self._limits, num_threads=self._threads)
        except (av.FFmpegError, OSError, EOFError) as error:
            raise undecodable(f"{reason}; {type(error).__name__}: {error}") from error
        if scan is None:
            raise no_frame(reason)
        self._scan = scan
        self._header = header.as_shown_by(scan.first, self._limits)
        good = np.flatnonzero(scan.is_good)
        index = scan.index
        if header.index is not None and scan.is_damaged:  # the packets tell what is missing
            index = header.index.since(int(index.pts[good[0]]))
        self._numbers = good[nearest(index.pts, scan.index.pts[good])]
        self._is_missing = scan.index.pts[self._numbers] != index.pts
        self._use(index)

    def read(self, indices: Indices, geometry: FrameGeometry) -> Pictures:
        """Pictures of the frames at ``indices``, not decreasing from call to call.

        Raises ReaderError if they are not where the index says, so that a scan may help, or DecodeError.
        """
        unique, copies = np.unique(indices, return_counts=True)
        size = scaled_size(geometry, self._header.width, self._header.height)
        frames = np.empty((len(indices), geometry.image_size, geometry.image_size, 3), np.uint8)
        if self._header.webp is not None:
            return self._read_webp(self._header.webp, unique, copies, size, frames)
        if self._scan is not None:
            return self._read_scanned(indices, unique, copies, size, frames)
        pts = np.empty(len(unique), np.int64)
        if self._can_use_torchcodec and self._read_by_torchcodec(unique, copies, size, frames):
            pts = self.index.pts[unique]
        else:
            self._read_in_parallel(unique, copies, size, frames, pts)
        found = self._times_ms(np.maximum.accumulate(pts))
        num_failed = int(copies[pts != self.index.pts[unique]].sum())
        return Pictures(frames, tuple(np.repeat(found, copies).tolist()), num_failed)

    def _times_ms(self, pts: Indices) -> Indices:
        return milliseconds(pts - self.index.pts[0], self.index.time_base).clip(0)

    def _read_scanned(
        self, indices: Indices, unique: Indices, copies: Indices, size: tuple[int, int], frames: NDArray[np.uint8]
    ) -> Pictures:
        numbers = self._numbers[unique]
        if self._counted is None:
            header = self._header
            decoded = decode_tolerantly(header.source, header.demuxer, self._limits, num_threads=self._threads)
            self._counted = CountedPictures(decoded, Scaler(size, header.orientation))
        try:
            _fill(frames, (self._counted.at(number) for number in numbers.tolist()), copies)
        except (av.FFmpegError, OSError, EOFError, ValueError) as error:
            raise undecodable(f"{type(error).__name__}: {error}") from error
        assert self._scan is not None
        times = self._times_ms(self._scan.index.pts[np.repeat(numbers, copies)])
        return Pictures(frames, tuple(times.tolist()), int(self._is_missing[indices].sum()))

    def _read_webp(
        self, webp: AnimatedWebp, unique: Indices, copies: Indices, size: tuple[int, int], frames: NDArray[np.uint8]
    ) -> Pictures:
        if self._webp is None:
            self._webp = _WebpPictures(webp, Scaler(size, Orientation()))
        _fill(frames, (self._webp.at(index) for index in unique.tolist()), copies)
        shown = np.minimum(unique, self._webp.last_index)  # the rest is damaged
        times = self.index.starts_ms[np.repeat(shown, copies)]
        return Pictures(frames, tuple(times.tolist()), int(copies[shown != unique].sum()))

    def _read_by_torchcodec(
        self, unique: Indices, copies: Indices, size: tuple[int, int], frames: NDArray[np.uint8]
    ) -> bool:
        header = self._header
        try:
            pictures = read_by_torchcodec(
                header.source, self.index, unique, size=size, orientation=header.orientation, num_threads=self._threads
            )
            _fill(frames, pictures, copies)
        except MemoryError:
            raise
        except Exception:  # torchcodec raises RuntimeError, ValueError and ReaderError for what it does not support
            return False
        return True

    def _read_in_parallel(
        self, unique: Indices, copies: Indices, size: tuple[int, int], frames: NDArray[np.uint8], pts: Indices
    ) -> None:
        is_huge = self._header.width * self._header.height > _MAX_PARALLEL_PIXELS
        parts = split_among_decoders(self.index, unique, 1 if is_huge else self._threads)
        ends = np.cumsum(copies)

        def note(found: Iterator[ReadFrame], first: int) -> Iterator[Picture]:
            for number, frame in enumerate(found, first):
                pts[number] = frame.pts
                yield frame.picture

        def read_part(part: tuple[int, int]) -> None:
            first, last = part
            found = read_by_time(
                self._header,
                self.index,
                unique[first:last],
                size=size,
                limits=self._limits,
                num_threads=self._threads if len(parts) == 1 else 1,
            )
            _fill(frames[ends[first] - copies[first] : ends[last - 1]], note(found, first), copies[first:last])

        try:
            with ThreadPoolExecutor(len(parts)) as pool:
                for _ in pool.map(read_part, parts):
                    pass
        except (av.FFmpegError, OSError, EOFError, ValueError) as error:
            raise ReaderError(f"{type(error).__name__}: {error}") from error


class _WebpPictures:
    """Pictures of an animation, in increasing order: each builds on those before it."""

    def __init__(self, webp: AnimatedWebp, scaler: Scaler) -> None:
        self._scaler = scaler
        self._wanted = 0
        self._pictures = webp.pictures(iter(lambda: self._wanted, None))
        self._picture: Picture | None = None
        self.last_index = -1  # of the last picture that could be decoded

    def at(self, index: int) -> Picture:
        """The picture, or the last one before it that can be decoded. Raises DecodeError if none can be."""
        if index != self.last_index:
            self._wanted = index
            picture = next(self._pictures, None)
            if picture is not None:
                self._picture = self._scaler(av.VideoFrame.from_ndarray(picture, format="rgb24"))
                self.last_index = index
        assert self._picture is not None
        return self._picture


def nearest(wanted: Indices, sorted_values: Indices) -> Indices:
    """For each of ``wanted`` the position of the nearest value, the earlier of two."""
    after = np.searchsorted(sorted_values, wanted).clip(0, len(sorted_values) - 1)
    before = (after - 1).clip(0)
    is_before = np.abs(sorted_values[before] - wanted) <= np.abs(sorted_values[after] - wanted)
    positions: Indices = np.where(is_before, before, after)
    return positions


def undecodable(internal: str) -> DecodeError:
    return DecodeError(
        "undecodable_video",
        "The video stream cannot be decoded: its data is damaged or incomplete.",
        internal=internal,
    )


def split_among_decoders(index: FrameIndex, indices: Indices, max_decoders: int) -> list[tuple[int, int]]:
    """Parts [first, last) of ``indices`` for parallel decoders, with about equal numbers of frames to decode.

    Frames of one group of pictures stay in one part. Several decoders with one thread each are faster than one with
    several threads, which restart after each seek; but one part is returned if one group holds most of the work.
    """
    groups = index.groups(indices)
    starts = np.flatnonzero(np.diff(groups, prepend=-1))  # first of each group in ``indices``
    lasts = np.append(starts[1:], len(indices))
    first_frames = np.searchsorted(index.pts, index.key_pts[groups[starts]])
    costs = indices[lasts - 1] - first_frames + 1
    decoder_of = ((np.cumsum(costs) - costs / 2) * max_decoders / costs.sum()).astype(np.int64)
    loads = np.bincount(decoder_of, weights=costs)
    if max_decoders == 1 or loads.max() > _MAX_BUSIEST_SHARE * costs.sum():
        return [(0, len(indices))]
    edges = starts[np.flatnonzero(np.diff(decoder_of, prepend=-1))].tolist()
    return list(zip(edges, [*edges[1:], len(indices)], strict=True))


def _fill(frames: NDArray[np.uint8], pictures: Iterator[Picture], copies: Indices) -> None:
    position = 0
    for picture, count in zip(pictures, copies.tolist(), strict=True):
        fit_square(picture, frames[position])
        frames[position + 1 : position + count] = frames[position]
        position += count
