"""The measured choice of an encoder, kept in the cache folder, so that every later start on a machine makes the same
one, however busy it is then. It is measured again when anything changes that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vidlex.model.weights import cache_dir

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Situation:
    """What a choice depends on."""

    fingerprint: str
    """Of the model."""
    precision: str
    candidates: tuple[str, ...]
    processor: str
    threads: int
    torch_version: str

    @classmethod
    def here(cls, fingerprint: str, precision: str, candidates: Sequence[str], device: torch.device) -> Situation:
        processor = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu_name()} x {os.cpu_count()}"
        return cls(
            fingerprint, precision, tuple(candidates), processor, torch.get_num_threads(), str(torch.__version__)
        )


def kept_choice(situation: Situation) -> str | None:
    """The candidate that was chosen in this situation; None: none was, or it cannot be read."""
    try:
        found = json.loads(_path(situation).read_text())["encoder"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found in situation.candidates else None


def keep_choice(situation: Situation, name: str) -> None:
    """Whole or not at all; a cache folder that cannot be written is no obstacle."""
    path = _path(situation)
    text = json.dumps({"encoder": name, **situation.__dict__}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError as error:
        _log.info("the choice of the encoder is not kept: %s", error.strerror)


def kept_choices(fingerprint: str) -> list[dict[str, object]]:
    """What was chosen for a model on this machine, each with its situation."""
    found = []
    for path in sorted((cache_dir() / "encoders").glob("*.json")):
        try:
            choice = json.loads(path.read_text())
            if choice["fingerprint"] == fingerprint:
                found.append(choice)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def cpu_name() -> str:
    """Such as ``AMD EPYC 7B13``."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _path(situation: Situation) -> Path:
    digest = hashlib.sha256(json.dumps(situation.__dict__, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "encoders" / f"{digest[:32]}.json"
