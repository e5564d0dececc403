"""What a killed training run needs to go on, in one safetensors file: weights, their average and their best,
optimizer moments, random states, the step, the log's running means and what early stopping knows.

No pickle. The file is replaced in one rename, so a kill at any moment leaves the last whole state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidlex.model.train.averages import StageWeights
from vidlex.model.train.optim import learned

_VERSION = 2


@dataclass
class Progress:
    """How far a stage is."""

    step: int = 0
    """Finished steps."""
    means: dict[str, float] = field(default_factory=dict)
    """Running means of the figures of the steps, as the console shows them."""
    best: float | None = None
    """The best validation figure, and the step it was seen after."""
    best_step: int = 0
    num_worse: int = 0
    """Evaluations since."""
    stopped: bool = False
    """Whether early stopping ended the stage."""


@dataclass
class StageState:
    """All of a stage that changes from step to step."""

    weights: StageWeights
    optimizer: torch.optim.Optimizer
    progress: Progress


def save_state(path: Path, stage: StageState, random_states: Tensor, config: str) -> None:
    """``random_states`` [processes, bytes] uint8; ``config`` is the JSON that a run must share to go on from here."""
    weights = stage.weights
    tensors = {f"module/{name}": value for name, value in weights.live.items()}
    tensors |= {f"average/{name}": value for name, value in (weights.average or {}).items()}
    tensors |= {f"best/{name}": value for name, value in (weights.best or {}).items()}
    for index, moments in enumerate(stage.optimizer.state.get(p, {}) for p in learned(stage.optimizer)):
        tensors |= {f"optimizer/{index}/{key}": value for key, value in moments.items()}
    tensors["random"] = random_states
    metadata = {"version": str(_VERSION), "progress": json.dumps(asdict(stage.progress)), "config": config}
    temporary = path.with_suffix(".partial")
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, temporary, metadata=metadata)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def load_state(path: Path, stage: StageState, process: int, config: str) -> None:
    """Restore a run in place: ``process`` takes its own random state, if the run had as many processes.

    Raises ValueError when the file was written by a run with another configuration: resuming would mix two runs.
    """
    with safe_open(path, framework="pt") as archive:
        metadata = archive.metadata()
        if metadata.get("version") != str(_VERSION):
            raise ValueError(f"{path} was written by another version of this program; choose another folder")
        if metadata["config"] != config:
            changed = _changed(json.loads(metadata["config"]), json.loads(config))
            raise ValueError(f"{path} belongs to a run with other settings ({changed}); choose another folder")
        tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
    weights = stage.weights
    for prefix, target in (("module/", weights.live), ("average/", weights.average)):
        with torch.no_grad():
            for name, value in (target or {}).items():
                value.copy_(tensors[prefix + name])
    best = _below(tensors, "best/")
    weights.best = {name: value.to(weights.live[name].device) for name, value in best.items()} or None
    for index, parameter in enumerate(learned(stage.optimizer)):
        if found := _below(tensors, f"optimizer/{index}/"):
            stage.optimizer.state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                for key, value in found.items()
            }
    if process < len(tensors["random"]):
        set_random_state(tensors["random"][process])
    stage.progress = Progress(**json.loads(metadata["progress"]))


def random_state() -> Tensor:
    """[bytes] uint8: PyTorch's generators of this process, the CPU's and the GPU's."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def set_random_state(state: Tensor) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())
    if len(state) > size and torch.cuda.is_available():
        torch.cuda.set_rng_state(state[size:].clone())


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _changed(old: dict[str, object], new: dict[str, object]) -> str:
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return ", ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys)
