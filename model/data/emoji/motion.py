"""Actions as curves: where a sprite is, how large, how turned and how opaque at each time of the video.

Time ``u`` runs from 0 to 1 over the video, so that any number of frames shows the same motion. Coordinates are
the canvas' own: -1 (left, top) to 1 (right, bottom). Starting places, sizes and angles have the same spread for
every action, so that one frame tells little of the action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.data.emoji.vocabulary import ACTIONS

STILL = len(ACTIONS)
"""Index of "no action": the sprite rests."""


@dataclass(frozen=True, eq=False)
class Pose:
    """Placement of sprites in each frame; every tensor is [..., T]."""

    x: Tensor
    y: Tensor
    size: Tensor
    """Side of the sprite as a part of the canvas' side."""
    angle: Tensor
    """Radians, clockwise on the screen."""
    alpha: Tensor
    """1 visible, 0 not."""


def sample_pose(action: Tensor, times: Tensor, size_range: tuple[float, float], generator: torch.Generator) -> Pose:
    """Random motion for each sprite.

    ``action`` [n] int64 (index into ``ACTIONS``, or ``STILL``); ``times`` [T] in 0..1. Returns poses [n, T].
    """
    n, t = action.shape[0], times.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, 1, generator=generator) * (high - low) + low  # [n, 1]

    def sign() -> Tensor:
        return torch.randint(0, 2, (n, 1), generator=generator) * 2.0 - 1.0

    u = times[None, :].expand(n, t)  # [n, T]
    size = uniform(*size_range).expand(n, t)
    reach = 1.0 - size * 0.9  # how far the centre may go so that the sprite stays mostly in the picture
    x = uniform(-1, 1) * reach
    y = uniform(-1, 1) * reach
    angle = (uniform(-0.25, 0.25) + _sometimes_turned(n, generator)).expand(n, t)
    alpha = torch.ones(n, t)
    phase = uniform(0, 2 * math.pi)
    direction = sign()
    travel = uniform(0.6, 1.1) * (u - 0.5)  # a centred move over the whole video
    wave = torch.sin(2 * math.pi * uniform(1.0, 2.2) * u + phase)
    hop = torch.sin(math.pi * uniform(1.6, 3.0) * u + phase).abs()
    tremble = torch.rand(n, t, 2, generator=generator) * 2 - 1
    orbit = 2 * math.pi * uniform(0.8, 1.4) * u * direction + phase
    radius = uniform(0.28, 0.42)
    scale = 0.45 + 0.75 * u

    def on(name: str) -> Tensor:
        return (action == ACTIONS.index(name))[:, None]  # [n, 1]

    centred = x * 0.4
    x = torch.where(on("moving left"), centred - travel, x)
    x = torch.where(on("moving right"), centred + travel, x)
    y = torch.where(on("rising"), y * 0.4 - travel, y)
    y = torch.where(on("falling"), y * 0.4 + travel, y)
    y = torch.where(on("bouncing"), y * 0.5 + 0.25 - 0.55 * hop, y)
    x = torch.where(on("shaking"), x + 0.13 * tremble[..., 0], x)
    y = torch.where(on("shaking"), y + 0.07 * tremble[..., 1], y)
    x = torch.where(on("circling"), x * 0.4 + radius * orbit.cos(), x)
    y = torch.where(on("circling"), y * 0.4 + radius * orbit.sin(), y)
    angle = torch.where(on("spinning"), angle + 2 * math.pi * uniform(0.6, 1.6) * u * direction, angle)
    angle = torch.where(on("swinging"), angle + uniform(0.5, 0.9) * wave, angle)
    size = torch.where(on("growing"), size * scale, size)
    size = torch.where(on("shrinking"), size * (1.2 - 0.75 * u), size)
    blink = (torch.sin(2 * math.pi * uniform(1.6, 3.2) * u + phase) > -0.2).float()
    alpha = torch.where(on("blinking"), blink, alpha)
    return Pose(x, y, size, angle, alpha)


def _sometimes_turned(n: int, generator: torch.Generator) -> Tensor:
    """One sprite in five rests at any angle, so that a turned sprite in one frame does not betray "spinning"."""
    turned = torch.rand(n, 1, generator=generator) < 0.2
    return torch.where(turned, torch.rand(n, 1, generator=generator) * 2 * math.pi, torch.zeros(n, 1))
