"""Seeds of everything random in training: one stream of numbers per use, one generator per step.

A step draws the same numbers whether a run is resumed, divided or restarted.
"""

from __future__ import annotations

from enum import IntEnum

import torch

_SEED_STRIDE = 10_000_019


class Stream(IntEnum):  # values are part of every recorded result
    PRETRAINING = 0
    STATE_NOISE = 20_000_000
    JOINT_STEP = 40_000_000
    VIDEO = 50_000_000
    POOL_ORDER = 60_000_000
    LABEL_STEP = 90_000_000


def seed_for(seed: int, stream: Stream, step: int) -> int:
    return seed * _SEED_STRIDE + stream + step


def generator_for(seed: int, stream: Stream, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_for(seed, stream, step))
