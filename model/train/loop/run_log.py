"""The records in a run's folder: ``run.json`` (settings, sessions, stages), ``log.jsonl`` and ``metrics.json``.

``log.jsonl`` has one object per line: ``{"stage": ..., "step": n, "loss": ..., "learning_rate": ..., ...}`` for each
finished step n, and ``{"stage": ..., "step": n, "validation": {...}}`` for an evaluation after step n. It contains no
times, so two runs with the same settings have equal logs.
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

from vidlex.model.files import replace_atomically
from vidlex.model.video.precision_cache import cpu_name

PACKAGES = ("vidlex", "torch", "open_clip_torch", "transformers", "accelerate", "numpy")


class RunFile:
    def __init__(self, out: Path, *, is_writer: bool = True, num_processes: int = 1) -> None:
        self.path, self.is_writer, self.num_processes = out / "run.json", is_writer, num_processes
        self.data: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def update(self, **values: Any) -> None:
        if not self.is_writer:
            return
        self.data |= values
        sessions = self.data.setdefault("sessions", [])
        if not sessions or sessions[-1]["process"] != _process_identity():  # first call
            sessions.append(session_record(self.num_processes))
        sessions[-1]["last_seen"] = timestamp()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(self.path) as temporary:
            temporary.write_text(json.dumps(self.data, indent=1) + "\n")

    def update_stage(self, stage: str, **values: Any) -> None:
        stages = self.data.get("stages", {})
        self.update(stages={**stages, stage: {**stages.get(stage, {}), **values}})


class StageLog:
    """Opening it removes the lines of the stage after ``step``, whose steps are repeated."""

    def __init__(self, out: Path, stage: str, step: int, *, is_writer: bool = True) -> None:
        self.path, self.stage, self.is_writer = out / "log.jsonl", stage, is_writer
        if not is_writer:
            return
        lines = [line for line in read_log(out) if line["stage"] != stage or line["step"] <= step]
        with replace_atomically(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self._file = self.path.open("a", buffering=1)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        if self.is_writer:
            self._file.write(json.dumps({"stage": self.stage, "step": step, **values}) + "\n")

    def close(self) -> None:
        if self.is_writer:
            self._file.close()


def read_log(out: Path) -> list[dict[str, Any]]:
    """Skips a truncated last line; empty if there is no log."""
    path = out / "log.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def write_metrics(out: Path, method: str, validation: Mapping[str, float]) -> None:
    (out / "metrics.json").write_text(json.dumps({"method": method, "validation": validation}, indent=1) + "\n")
    RunFile(out).update(ended=timestamp(), metrics=dict(validation))


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def session_record(num_processes: int = 1) -> dict[str, Any]:
    """What ran where: command, versions, commit and hardware, as found by this process."""
    return {
        "process": _process_identity(),
        "started": timestamp(),
        "command": shlex.join(sys.argv),
        "num_processes": num_processes,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": _git_state(),
        "hardware": {
            "cpu": cpu_name(),
            "num_cpus": os.cpu_count(),
            "num_threads": torch.get_num_threads(),
            "memory_bytes": psutil.virtual_memory().total,
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def describe_machine(session: Mapping[str, Any]) -> str:
    hardware = session["hardware"]
    gpus = f"{', '.join(hardware['gpus'])}, " if hardware["gpus"] else ""
    return f"{gpus}{hardware['num_cpus']} CPUs ({hardware['cpu']}), {hardware['num_threads']} threads"


def _process_identity() -> list[float]:
    return [os.getpid(), psutil.Process().create_time()]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    root = Path(__file__).resolve().parents[3]
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
