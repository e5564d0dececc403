"""Views of videos whose outputs of the frozen tower are on disk: computed once, shared by the processes of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from vidlex.model.decode.limits import DecodeError
from vidlex.model.sources.decode_pool import BrokenVideo
from vidlex.model.sources.reading import Slot, VideoReader, View
from vidlex.model.sources.trunk_cache import ContentDigests, Half, TrunkCache
from vidlex.model.train.loop.loop import console
from vidlex.model.train.loop.processes import ProcessGroup
from vidlex.model.train.source import SourceSetup

CHUNK = 16  # videos that are encoded together
SECONDS_BETWEEN_REPORTS = 15.0
UNREADABLE = "the file cannot be read"


class CachedViews:
    def __init__(
        self, folder: Path, views: list[View], setup: SourceSetup, reader: VideoReader, processes: ProcessGroup
    ) -> None:
        """All processes of the run call this, with the same views."""
        self.reader, self.processes = reader, processes
        self.cache = TrunkCache(folder, setup)
        digests = self._digests(folder, views)
        self._keys = {(id(view.catalogue), view.row, view.number): self._compute_key(view, digests) for view in views}
        self._fill(views)
        for view in views:
            if (reason := self._reason(view)) is not None:
                reader.broken.add(view.catalogue.path(view.row), reason)

    def key(self, view: View) -> str:
        """Empty if the file could not be read."""
        return self._keys[id(view.catalogue), view.row, view.number]

    def _reason(self, view: View) -> str | None:
        return self.cache.reason(key) if (key := self.key(view)) else UNREADABLE

    def _is_finished(self, view: View) -> bool:
        return not (key := self.key(view)) or self.cache.is_finished(key)

    def _decode(self, view: View, slot: Slot) -> None:
        if not self.key(view):
            raise BrokenVideo(UNREADABLE)
        self.reader.decode(view, slot)

    def read(self, view: View, slot: Slot) -> None:
        """Raises BrokenVideo if the video could not be decoded."""
        if not (key := self.key(view)):
            raise BrokenVideo(UNREADABLE)
        try:
            self.cache.read(key, cast(Half, slot[0]), cast(Half, slot[1]))
        except FileNotFoundError as error:
            raise BrokenVideo(self.cache.reason(key) or "it is not in the cache") from error

    def _digests(self, folder: Path, views: list[View]) -> dict[Path, str]:
        paths = list(dict.fromkeys(view.catalogue.path(view.row) for view in views))
        known = ContentDigests(folder)
        if self.processes.is_main:
            for future in [self.reader.pool.submit(known.of, path) for path in paths]:
                future.result()
            known.save()
        self._wait_for_others()
        if not self.processes.is_main:
            known = ContentDigests(folder)  # as the main process has stored them
        return {path: known.of(path) for path in paths}

    def _compute_key(self, view: View, digests: Mapping[Path, str]) -> str:
        video = view.catalogue.videos[view.row]
        augmentation = self.reader.augmentation_of(view)
        content = digests[view.catalogue.path(view.row)]
        return content and self.cache.key(content, video.start_ms, video.end_ms, augmentation and asdict(augmentation))

    def _fill(self, views: list[View]) -> None:
        """A chunk is always computed as a whole: rounding depends on the batch, and a resumed run must find the same
        values.
        """
        chunks = [views[i : i + CHUNK] for i in range(0, len(views), CHUNK)]
        missing = [chunk for chunk in chunks if not all(map(self._is_finished, chunk))]
        self._wait_for_others()  # before the first of them writes a file
        if missing:
            size = self.cache.check_space(sum(len(chunk) for chunk in missing))
            console.print(f"outputs of the frozen tower on disk: {size} in {self.cache.folder}")
        self._compute(missing[self.processes.index :: self.processes.count])
        self._wait_for_others()

    def _compute(self, chunks: list[list[View]]) -> None:
        started = reported = time.monotonic()
        num_done, num_all = 0, sum(len(chunk) for chunk in chunks)
        for chunk in self.reader.read_chunks(chunks, self._decode, self.reader.frame_shapes):
            if chunk.good:
                trunk = self.cache.compute(cast(Tensor, chunk.videos()))
                for number, position in enumerate(chunk.good):
                    key = self.key(chunk.views[position])
                    if not self.cache.has(key):
                        self.cache.write(key, trunk.frame_features[number], trunk.tokens[number])
            for position in set(range(len(chunk.views))) - set(chunk.good):
                view = chunk.views[position]
                reason = self.reader.broken.reason(view.catalogue.path(view.row))
                if (key := self.key(view)) and reason.startswith(DecodeError.__name__):  # of the content
                    self.cache.write_reason(key, reason)
            num_done += len(chunk.views)
            if (now := time.monotonic()) > reported + SECONDS_BETWEEN_REPORTS or num_done == num_all:
                rate = num_done / (now - started)
                console.print(f"frozen tower: {num_done} of {num_all} videos, {rate:.1f} per second", highlight=False)
                reported = now

    def _wait_for_others(self) -> None:
        self.processes.sum(torch.zeros(1))
