"""Actions as curves: where a sprite is, how large, how turned and how opaque at each time of the video.

Time ``u`` runs from 0 to 1 over the video, so that any number of frames shows the same motion. Coordinates are
the canvas' own: -1 (left, top) to 1 (right, bottom). Starting places, sizes and angles have the same spread for
every action, so that one frame tells little of the action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vidlex.model.emoji.vocabulary import ACTIONS

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
    stretch: Tensor
    """Factor on the width: 1 as drawn, negative mirrored."""

    def to(self, device: str) -> Pose:
        return Pose(*(getattr(self, field.name).to(device) for field in fields(self)))


def sample_pose(action: Tensor, times: Tensor, size_range: tuple[float, float], generator: torch.Generator) -> Pose:
    """Random motion for each sprite.

    ``action`` [n] int64 (index into ``ACTIONS``, or ``STILL``); ``times`` [T] in 0..1. Returns poses [n, T].
    """
    curves = _Curves(action, times, size_range, generator)
    curves.go()
    curves.swing()
    curves.turn_and_scale()
    curves.show_and_hide()
    return Pose(curves.x, curves.y, curves.size, curves.angle, curves.alpha, curves.stretch)


class _Curves:
    """Poses [n, T] in the making: at rest at first, then each action replaces what it moves of its own sprites."""

    def __init__(
        self, action: Tensor, times: Tensor, size_range: tuple[float, float], generator: torch.Generator
    ) -> None:
        n, t = action.shape[0], times.shape[0]
        self.n, self.action, self.generator = n, action, generator
        self.u = times[None, :].expand(n, t)  # [n, T]
        self.size = self.uniform(*size_range).expand(n, t)
        self.reach = 1.0 - self.size * 0.9  # how far the centre may go so that the sprite stays mostly in the picture
        self.x = self.uniform(-1, 1) * self.reach
        self.y = self.uniform(-1, 1) * self.reach
        self.angle = (self.uniform(-0.25, 0.25) + _sometimes_turned(n, generator)).expand(n, t)
        self.alpha = _sometimes(n, generator, 0.15, (0.25, 0.9)).expand(n, t)
        self.stretch = _sometimes(n, generator, 0.15, (0.5, 1.5)).expand(n, t)
        self.phase = self.uniform(0, 2 * math.pi)
        self.direction = self.sign()
        self.travel = self.uniform(0.6, 1.1) * (self.u - 0.5)  # a centred move over the whole video
        self.moment = self.uniform(0.35, 0.65)
        self.turning = 2 * math.pi * self.uniform(0.6, 1.6) * self.u * self.direction

    def uniform(self, low: float, high: float) -> Tensor:
        return torch.rand(self.n, 1, generator=self.generator) * (high - low) + low  # [n, 1]

    def sign(self) -> Tensor:
        """[n, 1]: -1 or 1."""
        return torch.randint(0, 2, (self.n, 1), generator=self.generator) * 2.0 - 1.0

    def wave(self, low: float, high: float) -> Tensor:
        """[n, T]: a sine of ``low`` to ``high`` turns over the video."""
        return torch.sin(2 * math.pi * self.uniform(low, high) * self.u + self.phase)

    def put(self, name: str, **curves: Tensor) -> None:
        """Replace curves of the sprites whose action is ``name``."""
        on = (self.action == ACTIONS.index(name))[:, None]  # [n, 1]
        for key, value in curves.items():
            setattr(self, key, torch.where(on, value, getattr(self, key)))

    def go(self) -> None:
        """From one place to another."""
        centred, u, side = self.x * 0.4, self.u, self.direction
        self.put("moving left", x=centred - self.travel)
        self.put("moving right", x=centred + self.travel)
        self.put("rising", y=self.y * 0.4 - self.travel)
        self.put("falling", y=self.y * 0.4 + self.travel)
        self.put("rolling", x=centred + side * self.travel, angle=self.angle + self.turning)
        self.put("tumbling", y=self.y * 0.4 + self.travel, angle=self.angle + self.turning)
        tooth = 2 * ((self.uniform(1.6, 2.4) * u + self.phase) % 1.0 - 0.5).abs() - 0.5  # a triangle wave
        self.put("zigzagging", x=centred + side * self.travel, y=self.y * 0.5 + 0.7 * tooth)
        there = 2 * (0.5 - (u - 0.5).abs()) - 0.5  # out and back
        self.put("turning back", x=centred + side * self.uniform(0.7, 1.1) * there)
        arrived = (u / self.moment).clamp_max(1.0) - 0.5
        self.put("stopping", x=centred + side * self.uniform(0.6, 1.0) * arrived)
        places = torch.rand(self.n, 4, 2, generator=self.generator) * 2 - 1
        place = (u * 4).long().clamp_max(3)
        x, y = (places[..., i].gather(1, place) * self.reach for i in (0, 1))
        self.put("teleporting", x=x, y=y)
        self._go_on_crooked_ways(centred)

    def _go_on_crooked_ways(self, centred: Tensor) -> None:
        u, side, along = self.u, self.direction, self.direction * self.travel
        low, sign = self.y * 0.4, self.sign()
        self.put("moving diagonally", x=centred + along, y=low + sign * self.travel)
        shuttle = 0.32 * self.wave(1.2, 2.2)
        self.put("shuttling", x=centred + shuttle, y=low + sign * shuttle)
        self.put("arching", x=centred + along, y=low + 0.35 - 0.8 * (1.0 - (2 * u - 1) ** 2))
        before, after = (u / self.moment).clamp_max(1.0), ((u - self.moment) / (1 - self.moment)).clamp_min(0.0)
        self.put("turning a corner", x=centred + side * (0.8 * before - 0.4), y=low + sign * (0.8 * after - 0.4))
        self.put("setting off", x=centred + side * self.uniform(0.7, 1.0) * (after - 0.5))
        self.put("speeding up", x=centred + side * self.uniform(0.9, 1.2) * (u**3 - 0.4))
        steps = (4 * u).floor().clamp_max(3.0) / 3 - 0.5
        self.put("going upstairs", x=centred + 0.7 * side * steps, y=low - 0.8 * steps)
        self.put("going in jerks", x=centred + side * self.uniform(0.7, 1.1) * steps)
        hop = torch.sin(math.pi * self.uniform(2.6, 4.0) * u + self.phase).abs()
        self.put("hopping along", x=centred + along, y=low + 0.2 - 0.45 * hop)
        tilt = self.angle + self.uniform(0.4, 0.7) * self.wave(1.4, 2.4)
        self.put("waddling", x=centred + along, angle=tilt)
        self.put("fluttering down", y=low + self.travel, angle=tilt)
        self.put("twirling upward", y=low - self.travel, angle=self.angle + self.turning)
        self.put("flying away", y=low - self.travel, size=self.size * (1.2 - 0.75 * u))
        self.put("coming down on us", y=low + self.travel, size=self.size * (0.45 + 0.75 * u))

    def swing(self) -> None:
        """To and fro, or round."""
        x, y, u = self.x, self.y, self.u
        hop = torch.sin(math.pi * self.uniform(1.6, 3.0) * u + self.phase).abs()
        self.put("bouncing", y=y * 0.5 + 0.25 - 0.55 * hop)
        hump = (1.0 - ((u - self.moment) / 0.22) ** 2).clamp_min(0.0)
        self.put("jumping once", y=y * 0.5 + 0.2 - 0.6 * hump)
        self.put("ducking", y=y * 0.5 - 0.2 + 0.6 * hump)
        tremble = torch.rand(*u.shape, 2, generator=self.generator) * 2 - 1
        self.put("shaking", x=x + 0.13 * tremble[..., 0], y=y + 0.07 * tremble[..., 1])
        self.put("swaying", x=x * 0.5 + 0.35 * self.wave(1.2, 2.2))
        self.put("bobbing", y=y * 0.5 + 0.3 * self.wave(1.2, 2.2))
        wobble = self.wave(1.2, 2.2)
        self.put("wobbling", x=x * 0.5 + 0.22 * wobble, angle=self.angle + 0.45 * wobble)
        orbit = 2 * math.pi * self.uniform(0.8, 1.4) * u * self.direction + self.phase
        radius = self.uniform(0.28, 0.42)
        self.put("circling", x=x * 0.4 + radius * orbit.cos(), y=y * 0.4 + radius * orbit.sin())
        growing = 0.08 + 0.42 * u
        self.put("spiralling", x=x * 0.3 + growing * (1.6 * orbit).cos(), y=y * 0.3 + growing * (1.6 * orbit).sin())

    def turn_and_scale(self) -> None:
        u = self.u
        self.put("spinning", angle=self.angle + self.turning)
        self.put("swinging", angle=self.angle + self.uniform(0.5, 0.9) * self.wave(1.0, 2.2))
        self.put("growing", size=self.size * (0.45 + 0.75 * u))
        self.put("shrinking", size=self.size * (1.2 - 0.75 * u))
        self.put("pulsing", size=self.size * (1.0 + 0.35 * self.wave(1.2, 2.2)))
        self.put("flipping", stretch=torch.cos(2 * math.pi * self.uniform(0.8, 1.6) * u + self.phase))
        self.put("stretching", stretch=0.6 + 0.9 * u)
        self.put("narrowing", stretch=1.5 - 0.9 * u)
        self.put("being kneaded", stretch=1.0 + 0.45 * self.wave(1.2, 2.2))
        self.put("twirling larger", size=self.size * (0.45 + 0.75 * u), angle=self.angle + self.turning)
        self.put("twirling away", size=self.size * (1.2 - 0.75 * u), angle=self.angle + self.turning)
        self.put("turning upside down", angle=self.angle + math.pi * u * self.direction)
        there = 1.0 - (2 * u - 1.0).abs()
        self.put("twisting there and back", angle=self.angle + 2.6 * there * self.direction)
        hump = (1.0 - ((u - self.moment) / 0.3) ** 2).clamp_min(0.0)
        self.put("swelling once", size=self.size * (0.7 + 0.6 * hump))
        late = (u > self.moment).float()
        self.put("growing suddenly", size=self.size * (0.6 + 0.55 * late))
        self.put("shrinking suddenly", size=self.size * (1.15 - 0.55 * late))

    def show_and_hide(self) -> None:
        u = self.u
        self.put("blinking", alpha=(self.wave(1.6, 3.2) > -0.2).float())
        self.put("fading in", alpha=0.1 + 0.9 * u)
        self.put("fading out", alpha=1.0 - 0.9 * u)
        self.put("appearing", alpha=(u > self.moment).float())
        self.put("disappearing", alpha=(u < self.moment).float())
        self.put("glimmering", alpha=0.55 + 0.45 * self.wave(1.2, 2.2))
        brief = ((u - self.moment).abs() < 0.2).float()
        self.put("showing briefly", alpha=brief)
        self.put("hiding briefly", alpha=1.0 - brief)


def _sometimes(n: int, generator: torch.Generator, part: float, span: tuple[float, float]) -> Tensor:
    """[n, 1]: 1, but for a part of the sprites a constant of that span: a pale or squeezed sprite in one frame then
    does not betray "fading" or "stretching"."""
    odd = torch.rand(n, 1, generator=generator) < part
    return torch.where(odd, torch.rand(n, 1, generator=generator) * (span[1] - span[0]) + span[0], torch.ones(n, 1))


def _sometimes_turned(n: int, generator: torch.Generator) -> Tensor:
    """One sprite in five rests at any angle, so that a turned sprite in one frame does not betray "spinning"."""
    turned = torch.rand(n, 1, generator=generator) < 0.2
    return torch.where(turned, torch.rand(n, 1, generator=generator) * 2 * math.pi, torch.zeros(n, 1))
