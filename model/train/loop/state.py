"""The state of a training stage in one safetensors file, from which a killed run resumes.

Replaced atomically: a kill at any moment leaves a complete state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vidlex.model.files import replace_atomically, save_tensors
from vidlex.model.train.loop.averages import StageWeights
from vidlex.model.train.loop.optim import optimized_parameters

_VERSION = 2


@dataclass
class Progress:
    step: int = 0  # finished
    means: dict[str, float] = field(default_factory=dict)  # running means of the logged values, for the console
    best: float | None = None  # validation metric after step ``best_step``
    best_step: int = 0
    num_worse: int = 0  # evaluations since the best one
    stopped: bool = False  # by early stopping


@dataclass
class StageState:
    weights: StageWeights
    optimizer: torch.optim.Optimizer
    progress: Progress


def save_state(path: Path, stage: StageState, random_states: Tensor, config: str) -> None:
    """``random_states``: [processes, bytes] uint8. ``config``: JSON; only a run with an equal one can resume."""
    weights = stage.weights
    tensors = {f"module/{name}": value for name, value in weights.live.items()}
    tensors |= {f"average/{name}": value for name, value in (weights.average or {}).items()}
    tensors |= {f"best/{name}": value for name, value in (weights.best or {}).items()}
    for index, moments in enumerate(stage.optimizer.state.get(p, {}) for p in optimized_parameters(stage.optimizer)):
        tensors |= {f"optimizer/{index}/{key}": value for key, value in moments.items()}
    tensors["random"] = random_states
    metadata = {"version": str(_VERSION), "progress": json.dumps(asdict(stage.progress)), "config": config}
    with replace_atomically(path, is_synced=True) as temporary:
        save_tensors({key: value.detach().contiguous() for key, value in tensors.items()}, temporary, metadata=metadata)


def load_state(path: Path, stage: StageState, process: int, config: str) -> None:
    """Restores the random state of ``process`` only if the file has one.

    Raises ValueError if the file belongs to a run with another configuration or to another version.
    """
    with safe_open(path, framework="pt") as archive:
        metadata = archive.metadata()
        if metadata.get("version") != str(_VERSION):
            raise ValueError(f"{path} was written by another version of this program; choose another folder")
        check_same_settings(path, json.loads(metadata["config"]), json.loads(config))
        tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
    weights = stage.weights
    for prefix, target in (("module/", weights.live), ("average/", weights.average)):
        with torch.no_grad():
            for name, value in (target or {}).items():
                value.copy_(tensors[prefix + name])
    best = _with_prefix(tensors, "best/")
    weights.best = {name: value.to(weights.live[name].device) for name, value in best.items()} or None
    for index, parameter in enumerate(optimized_parameters(stage.optimizer)):
        if found := _with_prefix(tensors, f"optimizer/{index}/"):
            stage.optimizer.state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                for key, value in found.items()
            }
    if process < len(tensors["random"]):
        set_random_state(tensors["random"][process])
    stage.progress = Progress(**json.loads(metadata["progress"]))


def random_state() -> Tensor:
    # [bytes] uint8
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def set_random_state(state: Tensor) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if len(state) > size and torch.cuda.is_available():
        torch.cuda.set_rng_state(state[size:].clone())


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def check_same_settings(place: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Both as read from JSON. Raises ValueError that names what differs."""
    before, after = dict(_flattened(old)), dict(_flattened(new))
    changed = [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if changed:
        raise ValueError(f"{place} belongs to a run with other settings ({', '.join(changed)}); choose another folder")


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
