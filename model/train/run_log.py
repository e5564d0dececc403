"""The papers of a run, in its folder: ``run.json`` (how it was made), ``log.jsonl`` (how it went), curves, metrics.

``log.jsonl`` has one object a line: ``{"stage": ..., "step": n, "loss": ..., "learning_rate": ..., ...}`` for each
finished step n, and ``{"stage": ..., "step": n, "validation": {...}}`` where the stage was evaluated after it. It
holds no times, so that two runs of the same settings can be compared as they are.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from vidlex.model.video.precision_cache import cpu_name

PACKAGES = ("vidlex", "torch", "open_clip_torch", "transformers", "accelerate", "numpy")


class RunFile:
    """``run.json``: read when opened, written whole or not at all. Of several processes only the main one writes."""

    def __init__(self, out: Path, *, writes: bool = True, num_processes: int = 1) -> None:
        self.path, self.writes, self.num_processes = out / "run.json", writes, num_processes
        self.data: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def update(self, **values: Any) -> None:
        """Set top-level entries. The session (this process) is added when it is first seen."""
        if not self.writes:
            return
        self.data |= values
        sessions = self.data.setdefault("sessions", [])
        if not sessions or sessions[-1]["process"] != _process():
            sessions.append(_session(self.num_processes))
        sessions[-1]["last_seen"] = now()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        temporary.write_text(json.dumps(self.data, indent=1) + "\n")
        temporary.replace(self.path)

    def update_stage(self, stage: str, **values: Any) -> None:
        stages = self.data.get("stages", {})
        self.update(stages={**stages, stage: {**stages.get(stage, {}), **values}})


class Log:
    """``log.jsonl``, one stage's part of it. Lines of the stage after ``step`` are cut off first: they come again."""

    def __init__(self, out: Path, stage: str, step: int, *, writes: bool = True) -> None:
        self.path, self.stage, self.writes = out / "log.jsonl", stage, writes
        if not writes:
            return
        kept = [line for line in read_log(out) if line["stage"] != stage or line["step"] <= step]
        temporary = self.path.with_suffix(".partial")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self.path)
        self._file = self.path.open("a", buffering=1)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        if self.writes:
            self._file.write(json.dumps({"stage": self.stage, "step": step, **values}) + "\n")

    def close(self) -> None:
        if self.writes:
            self._file.close()


def read_log(out: Path) -> list[dict[str, Any]]:
    """The lines of ``log.jsonl``; one that a kill cut short is left out. Empty when there is no log."""
    found = []
    for line in _text(out / "log.jsonl").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def write_metrics(out: Path, method: str, validation: Mapping[str, float]) -> None:
    """The final figures, in ``metrics.json`` and ``run.json``, and the time when the run was done."""
    (out / "metrics.json").write_text(json.dumps({"method": method, "validation": validation}, indent=1) + "\n")
    RunFile(out).update(ended=now(), metrics=dict(validation))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _session(num_processes: int) -> dict[str, Any]:
    """Of one start of the program: what was asked, by what and on what."""
    return {
        "process": _process(),
        "started": now(),
        "command": shlex.join(sys.argv),
        "num_processes": num_processes,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": _git(),
        "hardware": {
            "cpu": cpu_name(),
            "num_cpus": os.cpu_count(),
            "num_threads": torch.get_num_threads(),
            "memory_bytes": psutil.virtual_memory().total,
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _process() -> list[float]:
    return [os.getpid(), psutil.Process().create_time()]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the code, and whether tracked files differ from it; None where the code is no checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20)
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(changes.stdout.strip())}


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
