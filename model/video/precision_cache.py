"""Stores the measured choice of a video encoder, so that it does not depend on the load at each start."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vidlex.model.files import replace_atomically
from vidlex.model.weights.cache import cache_dir

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChoiceKey:  # stored as JSON under these names
    fingerprint: str  # of the model
    precision: str
    candidates: tuple[str, ...]
    processor: str
    threads: int
    torch_version: str

    @classmethod
    def for_device(cls, fingerprint: str, precision: str, candidates: Sequence[str], device: torch.device) -> ChoiceKey:
        processor = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu_name()} x {os.cpu_count()}"
        return cls(
            fingerprint, precision, tuple(candidates), processor, torch.get_num_threads(), str(torch.__version__)
        )


def load_choice(key: ChoiceKey) -> str | None:
    try:
        name = json.loads(_path(key).read_text())["encoder"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if name in key.candidates else None


def save_choice(key: ChoiceKey, name: str) -> None:
    path = _path(key)
    text = json.dumps({"encoder": name, **key.__dict__}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path, is_shared=True) as temporary:
            temporary.write_text(text)
    except OSError as error:
        _log.info("the choice of the video encoder cannot be stored: %s", error.strerror)


def load_choices(fingerprint: str) -> list[dict[str, object]]:  # ChoiceKey's fields and encoder
    choices = []
    for path in sorted((cache_dir() / "encoders").glob("*.json")):
        try:
            choice = json.loads(path.read_text())
            if choice["fingerprint"] == fingerprint:
                choices.append(choice)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return choices


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _path(key: ChoiceKey) -> Path:
    digest = hashlib.sha256(json.dumps(key.__dict__, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "encoders" / f"{digest[:32]}.json"
