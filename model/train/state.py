"""What a killed training run needs to go on: weights, optimizer moments and the step, in one safetensors file.

No pickle. The file is replaced in one rename, so a kill at any moment leaves the last whole state.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_VERSION = 1


def save_state(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, config: str) -> None:
    """Write everything of a run after ``step`` finished steps. Only trainable weights and buffers are stored."""
    tensors = {f"module/{name}": value.detach().contiguous() for name, value in _trainable(module).items()}
    for index, state in enumerate(_optimizer_states(optimizer)):
        for key, value in state.items():
            tensors[f"optimizer/{index}/{key}"] = value.detach().contiguous()
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary, metadata={"version": str(_VERSION), "step": str(step), "config": config})
    temporary.replace(path)


def load_state(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, config: str) -> int:
    """Restore a run in place and return its number of finished steps.

    Raises ValueError when the file was written by a run with another configuration: resuming would mix two runs.
    """
    with safe_open(path, framework="pt") as archive:
        metadata = archive.metadata()
        if metadata["config"] != config:
            changed = _changed(json.loads(metadata["config"]), json.loads(config))
            raise ValueError(f"{path} belongs to a run with other settings ({changed}); choose another folder")
        tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
    parameters = _trainable(module)
    with torch.no_grad():
        for name, target in parameters.items():
            target.copy_(tensors[f"module/{name}"])
    flat = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(flat):
        prefix = f"optimizer/{index}/"
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if found:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in found.items()
            }
    return int(metadata["step"])


def _trainable(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _optimizer_states(optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    return [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]


def _changed(old: dict[str, object], new: dict[str, object]) -> str:
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return ", ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys)
