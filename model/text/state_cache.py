"""The language model's states of many labels on disk: computed once, memory-mapped, continued after a kill.

One file holds the states in the order of the names. Its journal has a line per finished chunk with the SHA-256 of the
chunk's bytes, written after them. A chunk without a matching line is computed again, so a file that is incomplete,
damaged or another encoder's is never used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from vidlex.model.files import digest_files
from vidlex.model.text.formats import format_bytes, format_seconds
from vidlex.model.text.label_encoder import LabelEncoder

FORMAT = 1
REPORT_EVERY_SECONDS = 10.0

Report = Callable[[str], None]
_NUMPY_TYPES: dict[torch.dtype, np.dtype[np.floating]] = {
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
}


def cached_states(
    encoder: LabelEncoder,
    names: Sequence[str],
    folder: Path,
    *,
    report: Report,
    dtype: torch.dtype = torch.float32,
    name: str = "states",
) -> Tensor:  # [V, N, K, L, d] float32 or float16, on the CPU
    """The result of ``encoder.cache_states(names)``, kept in ``folder`` in a file that begins with ``name``.

    ``report`` receives the size before anything is written, then the progress with rate and time left. Processes that
    share the folder wait for the one that computes. The tensor is mapped privately: writing to it changes no file.
    Raises OSError if the disk is too full.
    """
    shape = (len(names), *encoder.state_mean.shape)
    if not names:
        return torch.empty(shape, dtype=dtype)
    identity = states_digest(encoder, names, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    file = _StatesFile(folder / f"{name}-{identity}.bin", identity, encoder.chunks(names), shape, dtype)
    with FileLock(file.path.with_suffix(".lock")):
        _complete(file, encoder, names, report)
    return torch.from_file(str(file.path), shared=False, size=math.prod(shape), dtype=dtype).view(shape)


def states_digest(encoder: LabelEncoder, names: Sequence[str], dtype: torch.dtype = torch.float32) -> str:
    """16 hex digits over all that determines the states: the LLM's files and precision, the prompt's and the names'
    tokens, prefixes, K, L, feedback, and the ``dtype`` on disk."""
    llm, config, prompt = encoder.llm, encoder.config, encoder.prompt
    if llm.folder is None:
        raise ValueError("states of a language model without a folder cannot be kept")
    files = sorted([*llm.folder.glob("*.safetensors"), llm.folder / "config.json"])
    settings = [
        FORMAT, digest_files(files), str(llm.dtype), str(dtype), list(encoder.state_mean.shape), config.feedback,
        prompt.distinct, llm.shared_ids(prompt), list(names), encoder.num_pass_labels,
        [llm.label_ids(prompt, name, config.num_decoded) for name in names],
    ]  # fmt: skip
    prefixes = encoder.prefixes.detach().float().cpu().numpy().tobytes()
    return hashlib.sha256(json.dumps(settings).encode() + prefixes).hexdigest()[:16]


@dataclass(frozen=True)
class _StatesFile:
    path: Path
    identity: str
    chunks: list[list[int]]  # rows of each
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def journal(self) -> Path:
        return self.path.with_suffix(".journal")

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def open(self, mode: Literal["r", "r+"]) -> NDArray[np.floating]:
        values: NDArray[np.floating] = np.memmap(self.path, _NUMPY_TYPES[self.dtype], mode, shape=self.shape)
        return values

    def checksum(self, chunk: int, values: NDArray[np.floating]) -> str:
        return hashlib.sha256(f"{self.identity} {chunk} ".encode() + values.tobytes()).hexdigest()

    def finished(self) -> set[int]:  # chunks whose bytes are those of the journal
        if not self.path.is_file() or not self.journal.is_file() or self.path.stat().st_size != self.num_bytes:
            return set()
        states, done = self.open("r"), set()
        for line in self.journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                i, checksum = json.loads(line)
                if checksum == self.checksum(i, states[self.chunks[i]]):
                    done.add(i)
            except (ValueError, TypeError, IndexError):
                continue  # incomplete or damaged
        return done

    def allocate(self) -> None:
        """Give the file its size on disk at once: a full disk is an error here, not a crash of a mapped write later."""
        existing = self.path.stat().st_size if self.path.exists() else 0
        free = shutil.disk_usage(self.path.parent).free
        if self.num_bytes - existing > free:
            raise OSError(
                f"{format_bytes(self.num_bytes)} of language model states do not fit in {self.path.parent}: "
                f"{format_bytes(free)} are free"
            )
        with self.path.open("ab") as file:
            file.truncate(self.num_bytes)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, self.num_bytes)


@torch.no_grad()
def _complete(file: _StatesFile, encoder: LabelEncoder, names: Sequence[str], report: Report) -> None:
    done = file.finished()
    missing = [i for i in range(len(file.chunks)) if i not in done]
    if not missing:
        return
    num_done = sum(len(file.chunks[i]) for i in done)
    kept = f", {num_done} of them from an earlier start" if num_done else ""
    report(f"language model states of {len(names)} labels{kept}: {format_bytes(file.num_bytes)} in {file.path}")
    file.allocate()
    progress = _Progress(len(names), num_done, report)
    states = file.open("r+")
    with file.path.open("rb") as data, file.journal.open("a", encoding="utf-8") as journal:
        journal.write("\n")  # ends the incomplete last line of a killed process
        for i in missing:
            rows = file.chunks[i]
            values = encoder.soft_attributes([names[row] for row in rows]).to("cpu", file.dtype).numpy()
            states[rows] = values
            os.fsync(data.fileno())  # the data before its line
            journal.write(json.dumps([i, file.checksum(i, values)]) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
            progress.add(len(rows))
    progress.finish()


class _Progress:
    def __init__(self, total: int, done: int, report: Report) -> None:
        self._total, self._done, self._report = total, done, report
        self._started = self._reported = time.monotonic()
        self._new = 0

    def add(self, num_labels: int) -> None:
        self._new += num_labels
        self._done += num_labels
        now = time.monotonic()
        if self._done < self._total and now - self._reported >= REPORT_EVERY_SECONDS:
            self._reported = now
            rate = self._new / (now - self._started)
            left = format_seconds((self._total - self._done) / rate)
            self._report(f"{self._done} of {self._total} labels, {rate:.3g} per second, {left} left")

    def finish(self) -> None:
        seconds = time.monotonic() - self._started
        self._report(f"{self._total} of {self._total} labels, {self._new} in {format_seconds(seconds)}")
