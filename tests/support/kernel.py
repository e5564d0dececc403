"""A tiny checkpoint with the method "kernel": random weights of a small LLM, an EfficientNet-Lite and all parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from support.tiny import LLM_WIDTH, write_llm
from vidlex.model.config import KernelConfig
from vidlex.model.kernel.export import write_checkpoint
from vidlex.model.video.motion_branch import MotionBranch, MotionBranchConfig

SIDE = 64
NUM_LANDMARKS, NUM_MOTION_LABELS = 6, 3
MOTION = MotionBranchConfig(
    num_labels=NUM_MOTION_LABELS, channels=112, grid=SIDE // 16, width=16, heads=2, num_layers=1, match_width=8,
    look_width=4, field_width=16, max_shift=1,
)  # fmt: skip


def random_tower(architecture: str = "tf_efficientnet_lite0", seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(architecture, pretrained=False, num_classes=0)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.momentum = 1.0
        with torch.no_grad():  # statistics of its own activations, as after training: otherwise rounding errors grow
            model.train()(torch.randn(4, 3, 2 * SIDE, 2 * SIDE))
    return model.eval().requires_grad_(False)


def write_tower(folder: Path, seed: int = 0) -> Path:
    """In timm's layout, for pictures of SIDE pixels."""
    folder.mkdir()
    pretrained = {"input_size": [3, SIDE, SIDE], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    config = {"architecture": "tf_efficientnet_lite0", "num_classes": 0, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_tower(seed=seed).state_dict(), folder / "model.safetensors")
    return folder


def kernel_config(llm: Path | str, *, with_kinds: bool = True, with_motion: bool = True) -> KernelConfig:
    return KernelConfig(
        llm=str(llm), prompts=("visible", "kind"), num_landmarks=NUM_LANDMARKS, rank=5, kind_width=4 * with_kinds,
        state_scale=2.0, kind_scale=1.5, slope=3.0, norm_power=0.7, bias_scale=1.3, bias_shift=-0.4, constant=0.8,
        motion_weight=1.2, max_logit=20.0, motion=MOTION.to_json() if with_motion else None,
    )  # fmt: skip


def random_tensors(config: KernelConfig, width: int = LLM_WIDTH, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    p, rank, j = len(config.prompts), config.rank, config.num_landmarks
    num_outputs = config.num_channels + 1 + config.num_motion_labels
    tensors = {
        "label.state_mean": 0.1 * normal(p, width),
        "label.state_std": 0.5 + torch.rand(p, width, generator=generator),
        "label.projection": normal(p, width, rank) / width**0.5,
        "label.landmarks": normal(j, p * rank) / (p * rank) ** 0.5,
        "label.alpha": normal(j, num_outputs),
        "label.offset": 0.1 * normal(num_outputs),
        "video.centre": 0.1 * normal(config.num_channels),
    }
    if config.kind_width:
        kinds = normal(j, config.kind_width)
        tensors["label.kinds"] = normal(p * rank, config.kind_width)
        tensors["label.landmark_kinds"] = kinds / kinds.norm(dim=1, keepdim=True)
    if config.motion is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            branch = MotionBranch(MotionBranchConfig.from_json(config.motion))
            nn.init.normal_(branch.neutral)
        tensors |= {f"motion.{name}": value for name, value in branch.state_dict().items()}
    # what float16 can hold, so that a stored checkpoint has these values
    return {name: value.half().float() for name, value in tensors.items()}


@dataclass(frozen=True)
class KernelFiles:
    llm: Path
    tower: Path
    checkpoint: Path
    config: KernelConfig
    tensors: dict[str, Tensor]


def write_kernel_checkpoint(root: Path) -> KernelFiles:
    llm, tower = write_llm(root / "llm"), write_tower(root / "tower")
    config = kernel_config(llm)
    tensors = random_tensors(config)
    names = [f"landmark {i}" for i in range(NUM_LANDMARKS)]
    write_checkpoint(
        root / "checkpoint", config, tensors, id="tiny", landmark_names=names, tower=str(tower), num_frames=3
    )
    return KernelFiles(llm, tower, root / "checkpoint", config, tensors)
