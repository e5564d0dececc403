"""Reads videos into memory for batches, in the threads of a decode pool."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidlex.model.sources.augmentation import Augmentation, Frames
from vidlex.model.sources.catalogue import Catalogue
from vidlex.model.sources.config import DataConfig
from vidlex.model.sources.decode_pool import BrokenVideo, DecodePool
from vidlex.model.train.source import SourceSetup
from vidlex.model.video.encoder import Trunk

KILLED = "killed: "  # begins the reason of a video whose decoding crashed or took too long
Shapes = tuple[tuple[int, ...], ...]
Slot = tuple[NDArray[np.generic], ...]  # of one video, one array per shape


class View(NamedTuple):
    catalogue: Catalogue
    row: int
    number: int = 0  # 0: the video itself; others: augmented


class VideoBatch:
    """Memory for b videos: frames [b, T, H, W, 3] uint8, or outputs of the tower in float16 if there are two shapes."""

    def __init__(self, shapes: Shapes, num_videos: int, *, is_pinned: bool) -> None:
        self.has_frames = len(shapes) == 1
        dtype = torch.uint8 if self.has_frames else torch.float16
        self._tensors = [torch.empty(num_videos, *shape, dtype=dtype, pin_memory=is_pinned) for shape in shapes]
        self._arrays: list[NDArray[np.generic]] = [tensor.numpy() for tensor in self._tensors]

    def slot(self, number: int) -> Slot:
        return tuple(array[number] for array in self._arrays)

    def videos(self, rows: slice | list[int]) -> Tensor | Trunk:
        if self.has_frames:
            return self._tensors[0][rows].permute(0, 1, 4, 2, 3)
        return Trunk(self._tensors[0][rows], self._tensors[1][rows])


class Chunk(NamedTuple):
    views: list[View]
    batch: VideoBatch
    good: list[int]  # positions of the views that could be read

    def videos(self) -> Tensor | Trunk:
        return self.batch.videos(self.good)


class VideoReader:
    def __init__(self, config: DataConfig, setup: SourceSetup, num_processes: int) -> None:
        """``num_processes``: those of the run, which share the cores."""
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_workers = config.num_decode_workers or max(1, num_cores // num_processes)
        self.config, self.seed, self.resize_mode = config, setup.config.seed, setup.geometry.resize_mode
        self.pool = DecodePool(num_workers, timeout_seconds=config.decode_timeout_seconds)
        self.broken = BrokenVideos(setup.out)
        self.num_ahead = 4 * num_workers
        size = setup.geometry.image_size
        self.frame_shapes: Shapes = ((setup.encoder.config.num_frames, size, size, 3),)
        self.is_pinned = torch.device(setup.config.device).type == "cuda"

    def batch(self, shapes: Shapes, num_videos: int) -> VideoBatch:
        return VideoBatch(shapes, num_videos, is_pinned=self.is_pinned)

    def augmentation(self, *seed: int) -> Augmentation | None:
        config = self.config
        if config.crop_scale == 1 and not (config.flip or config.colour or config.time_jitter):
            return None
        return Augmentation(seed, config.crop_scale, config.flip, config.colour, config.time_jitter)

    def augmentation_of(self, view: View) -> Augmentation | None:
        return self.augmentation(self.seed, view.number, view.row) if view.number else None

    def decode(self, view: View, slot: Slot) -> None:
        self.decode_augmented(view, slot, self.augmentation_of(view))

    def decode_augmented(self, view: View, slot: Slot, augmentation: Augmentation | None) -> None:
        """In a thread of the pool. Raises BrokenVideo, and lists the video as broken."""
        video, path = view.catalogue.videos[view.row], view.catalogue.path(view.row)
        if (reason := self.broken.reason(path)).startswith(KILLED):  # not again: each attempt takes long
            raise BrokenVideo(reason)
        try:
            self.pool.read(
                path, cast(Frames, slot[0]), resize_mode=self.resize_mode, start_ms=video.start_ms,
                end_ms=video.end_ms, augmentation=augmentation,
            )  # fmt: skip
        except BrokenVideo as error:
            self.broken.add(path, f"{KILLED if error.was_killed else ''}{error}")
            raise

    def read_chunks(
        self, chunks: list[list[View]], read: Callable[[View, Slot], None], shapes: Shapes
    ) -> Iterator[Chunk]:
        """In order, and ahead of the caller. ``read`` fills a slot, or raises BrokenVideo."""
        waiting: list[tuple[Chunk, int, Future[bool]]] = []
        remaining = self._places(chunks, shapes)

        def is_read(view: View, slot: Slot) -> bool:
            try:
                read(view, slot)
            except BrokenVideo:
                return False
            return True

        def start(num: int) -> None:
            for chunk, position in islice(remaining, num):
                slot = chunk.batch.slot(position)
                waiting.append((chunk, position, self.pool.submit(is_read, chunk.views[position], slot)))

        start(self.num_ahead)
        while waiting:
            chunk, position, future = waiting.pop(0)
            if future.result():
                chunk.good.append(position)
            start(1)
            if position == len(chunk.views) - 1:
                yield chunk

    def _places(self, chunks: list[list[View]], shapes: Shapes) -> Iterator[tuple[Chunk, int]]:
        for views in chunks:
            chunk = Chunk(views, self.batch(shapes, len(views)), [])
            for position in range(len(views)):
                yield chunk, position


class BrokenVideos:
    """``broken_videos.txt`` in the folder of the run, which a resumed run keeps: path, tab, reason. Thread-safe."""

    def __init__(self, out: Path) -> None:
        self.file = out / "broken_videos.txt"
        self._lock = threading.Lock()
        self._reasons = self._read()

    def _read(self) -> dict[str, str]:
        lines = self.file.read_text(encoding="utf-8").split("\n")[:-1] if self.file.exists() else []
        return {path: reason for path, _, reason in (line.partition("\t") for line in lines)}

    def add(self, path: Path, reason: str) -> None:
        reason = " ".join(reason.split())
        with self._lock:
            if (name := _on_one_line(path)) in self._reasons:
                return
            self._reasons[name] = reason
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:  # one write: several processes may append
                file.write(f"{name}\t{reason}\n")

    def reason(self, path: Path) -> str:
        return self._reasons.get(_on_one_line(path), "")

    def count(self) -> int:  # of all processes
        return len(self._read())


def _on_one_line(path: Path) -> str:
    return str(path).replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
