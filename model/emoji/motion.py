"""Actions as curves: position, size, angle, opacity and stretch of a sprite over the video.

Time ``u`` runs from 0 to 1 over the video, so that the motion does not depend on the number of frames. Coordinates run
from -1 (left, top) to 1 (right, bottom) of the canvas. Positions, sizes and angles have the same spread for every
action, so that one frame reveals little of the action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vidlex.model.emoji.vocabulary import ACTIONS

STILL = len(ACTIONS)  # index of "no action"


@dataclass(frozen=True, eq=False)
class Pose:  # every tensor is [..., T]
    x: Tensor
    y: Tensor
    size: Tensor  # side of the sprite over the side of the canvas
    angle: Tensor  # radians, clockwise
    alpha: Tensor  # opacity in 0..1
    stretch: Tensor  # factor on the width, negative if mirrored

    def to(self, device: str) -> Pose:
        return Pose(*(getattr(self, field.name).to(device) for field in fields(self)))


def sample_pose(action: Tensor, times: Tensor, size_range: tuple[float, float], generator: torch.Generator) -> Pose:
    """[n] int64 (index into ``ACTIONS``, or ``STILL``) and ``times`` [T] in 0..1 -> random motions [n, T]."""
    curves = _Curves(action, times, size_range, generator)
    curves.translate()
    curves.translate_along_path()
    curves.oscillate()
    curves.rotate_and_scale()
    curves.fade()
    return Pose(curves.x, curves.y, curves.size, curves.angle, curves.alpha, curves.stretch)


class _Curves:
    """Poses [n, T] under construction: constant at first, then each action replaces the curves of its own sprites.

    The order of the random draws defines the videos of every seed.
    """

    def __init__(
        self, action: Tensor, times: Tensor, size_range: tuple[float, float], generator: torch.Generator
    ) -> None:
        n, t = action.shape[0], times.shape[0]
        self.n, self.action, self.generator = n, action, generator
        self.u = times[None, :].expand(n, t)  # [n, T]
        self.size = self.uniform(*size_range).expand(n, t)
        self.max_offset = 1.0 - self.size * 0.9  # of the centre, so that most of the sprite stays on the canvas
        self.x = self.uniform(-1, 1) * self.max_offset
        self.y = self.uniform(-1, 1) * self.max_offset
        self.angle = (self.uniform(-0.25, 0.25) + _occasional_rotation(n, generator)).expand(n, t)
        self.alpha = _occasional_factor(n, generator, 0.15, (0.25, 0.9)).expand(n, t)
        self.stretch = _occasional_factor(n, generator, 0.15, (0.5, 1.5)).expand(n, t)
        self.phase = self.uniform(0, 2 * math.pi)
        self.direction = self.sign()
        self.travel = self.uniform(0.6, 1.1) * (self.u - 0.5)  # displacement; 0 in the middle of the video
        self.moment = self.uniform(0.35, 0.65)
        self.rotation = 2 * math.pi * self.uniform(0.6, 1.6) * self.u * self.direction

    def uniform(self, low: float, high: float) -> Tensor:
        return torch.rand(self.n, 1, generator=self.generator) * (high - low) + low  # [n, 1]

    def sign(self) -> Tensor:  # [n, 1]: -1 or 1
        return torch.randint(0, 2, (self.n, 1), generator=self.generator) * 2.0 - 1.0

    def wave(self, low: float, high: float) -> Tensor:  # [n, T], a sine of ``low`` to ``high`` periods
        return torch.sin(2 * math.pi * self.uniform(low, high) * self.u + self.phase)

    def assign(self, action: str, **curves: Tensor) -> None:
        mask = (self.action == ACTIONS.index(action))[:, None]  # [n, 1]
        for name, values in curves.items():
            setattr(self, name, torch.where(mask, values, getattr(self, name)))

    def translate(self) -> None:
        centred, u, side = self.x * 0.4, self.u, self.direction
        self.assign("moving left", x=centred - self.travel)
        self.assign("moving right", x=centred + self.travel)
        self.assign("rising", y=self.y * 0.4 - self.travel)
        self.assign("falling", y=self.y * 0.4 + self.travel)
        self.assign("rolling", x=centred + side * self.travel, angle=self.angle + self.rotation)
        self.assign("tumbling", y=self.y * 0.4 + self.travel, angle=self.angle + self.rotation)
        triangle_wave = 2 * ((self.uniform(1.6, 2.4) * u + self.phase) % 1.0 - 0.5).abs() - 0.5
        self.assign("zigzagging", x=centred + side * self.travel, y=self.y * 0.5 + 0.7 * triangle_wave)
        out_and_back = 2 * (0.5 - (u - 0.5).abs()) - 0.5
        self.assign("turning back", x=centred + side * self.uniform(0.7, 1.1) * out_and_back)
        until_moment = (u / self.moment).clamp_max(1.0) - 0.5
        self.assign("stopping", x=centred + side * self.uniform(0.6, 1.0) * until_moment)
        positions = torch.rand(self.n, 4, 2, generator=self.generator) * 2 - 1
        quarter = (u * 4).long().clamp_max(3)
        x, y = (positions[..., i].gather(1, quarter) * self.max_offset for i in (0, 1))
        self.assign("teleporting", x=x, y=y)

    def translate_along_path(self) -> None:
        u, side, along = self.u, self.direction, self.direction * self.travel
        x, y, sign = self.x * 0.4, self.y * 0.4, self.sign()
        self.assign("moving diagonally", x=x + along, y=y + sign * self.travel)
        shuttle = 0.32 * self.wave(1.2, 2.2)
        self.assign("shuttling", x=x + shuttle, y=y + sign * shuttle)
        self.assign("arching", x=x + along, y=y + 0.35 - 0.8 * (1.0 - (2 * u - 1) ** 2))
        before, after = (u / self.moment).clamp_max(1.0), ((u - self.moment) / (1 - self.moment)).clamp_min(0.0)
        self.assign("turning a corner", x=x + side * (0.8 * before - 0.4), y=y + sign * (0.8 * after - 0.4))
        self.assign("setting off", x=x + side * self.uniform(0.7, 1.0) * (after - 0.5))
        self.assign("speeding up", x=x + side * self.uniform(0.9, 1.2) * (u**3 - 0.4))
        steps = (4 * u).floor().clamp_max(3.0) / 3 - 0.5
        self.assign("going upstairs", x=x + 0.7 * side * steps, y=y - 0.8 * steps)
        self.assign("going in jerks", x=x + side * self.uniform(0.7, 1.1) * steps)
        hop = torch.sin(math.pi * self.uniform(2.6, 4.0) * u + self.phase).abs()
        self.assign("hopping along", x=x + along, y=y + 0.2 - 0.45 * hop)
        tilt = self.angle + self.uniform(0.4, 0.7) * self.wave(1.4, 2.4)
        self.assign("waddling", x=x + along, angle=tilt)
        self.assign("fluttering down", y=y + self.travel, angle=tilt)
        self.assign("twirling upward", y=y - self.travel, angle=self.angle + self.rotation)
        self.assign("flying away", y=y - self.travel, size=self.size * (1.2 - 0.75 * u))
        self.assign("coming down on us", y=y + self.travel, size=self.size * (0.45 + 0.75 * u))

    def oscillate(self) -> None:
        x, y, u = self.x, self.y, self.u
        hop = torch.sin(math.pi * self.uniform(1.6, 3.0) * u + self.phase).abs()
        self.assign("bouncing", y=y * 0.5 + 0.25 - 0.55 * hop)
        bump = (1.0 - ((u - self.moment) / 0.22) ** 2).clamp_min(0.0)
        self.assign("jumping once", y=y * 0.5 + 0.2 - 0.6 * bump)
        self.assign("ducking", y=y * 0.5 - 0.2 + 0.6 * bump)
        jitter = torch.rand(*u.shape, 2, generator=self.generator) * 2 - 1
        self.assign("shaking", x=x + 0.13 * jitter[..., 0], y=y + 0.07 * jitter[..., 1])
        self.assign("swaying", x=x * 0.5 + 0.35 * self.wave(1.2, 2.2))
        self.assign("bobbing", y=y * 0.5 + 0.3 * self.wave(1.2, 2.2))
        wobble = self.wave(1.2, 2.2)
        self.assign("wobbling", x=x * 0.5 + 0.22 * wobble, angle=self.angle + 0.45 * wobble)
        orbit = 2 * math.pi * self.uniform(0.8, 1.4) * u * self.direction + self.phase
        radius = self.uniform(0.28, 0.42)
        self.assign("circling", x=x * 0.4 + radius * orbit.cos(), y=y * 0.4 + radius * orbit.sin())
        spiral_radius = 0.08 + 0.42 * u
        self.assign(
            "spiralling",
            x=x * 0.3 + spiral_radius * (1.6 * orbit).cos(),
            y=y * 0.3 + spiral_radius * (1.6 * orbit).sin(),
        )

    def rotate_and_scale(self) -> None:
        u = self.u
        self.assign("spinning", angle=self.angle + self.rotation)
        self.assign("swinging", angle=self.angle + self.uniform(0.5, 0.9) * self.wave(1.0, 2.2))
        self.assign("growing", size=self.size * (0.45 + 0.75 * u))
        self.assign("shrinking", size=self.size * (1.2 - 0.75 * u))
        self.assign("pulsing", size=self.size * (1.0 + 0.35 * self.wave(1.2, 2.2)))
        self.assign("flipping", stretch=torch.cos(2 * math.pi * self.uniform(0.8, 1.6) * u + self.phase))
        self.assign("stretching", stretch=0.6 + 0.9 * u)
        self.assign("narrowing", stretch=1.5 - 0.9 * u)
        self.assign("being kneaded", stretch=1.0 + 0.45 * self.wave(1.2, 2.2))
        self.assign("twirling larger", size=self.size * (0.45 + 0.75 * u), angle=self.angle + self.rotation)
        self.assign("twirling away", size=self.size * (1.2 - 0.75 * u), angle=self.angle + self.rotation)
        self.assign("turning upside down", angle=self.angle + math.pi * u * self.direction)
        out_and_back = 1.0 - (2 * u - 1.0).abs()
        self.assign("twisting there and back", angle=self.angle + 2.6 * out_and_back * self.direction)
        bump = (1.0 - ((u - self.moment) / 0.3) ** 2).clamp_min(0.0)
        self.assign("swelling once", size=self.size * (0.7 + 0.6 * bump))
        after_moment = (u > self.moment).float()
        self.assign("growing suddenly", size=self.size * (0.6 + 0.55 * after_moment))
        self.assign("shrinking suddenly", size=self.size * (1.15 - 0.55 * after_moment))

    def fade(self) -> None:
        u = self.u
        self.assign("blinking", alpha=(self.wave(1.6, 3.2) > -0.2).float())
        self.assign("fading in", alpha=0.1 + 0.9 * u)
        self.assign("fading out", alpha=1.0 - 0.9 * u)
        self.assign("appearing", alpha=(u > self.moment).float())
        self.assign("disappearing", alpha=(u < self.moment).float())
        self.assign("glimmering", alpha=0.55 + 0.45 * self.wave(1.2, 2.2))
        near_moment = ((u - self.moment).abs() < 0.2).float()
        self.assign("showing briefly", alpha=near_moment)
        self.assign("hiding briefly", alpha=1.0 - near_moment)


def _occasional_factor(n: int, generator: torch.Generator, fraction: float, span: tuple[float, float]) -> Tensor:
    """[n, 1]: uniform in ``span`` for a fraction of the sprites, else 1.

    A transparent or squeezed sprite in one frame then does not reveal "fading in" or "stretching".
    """
    chosen = torch.rand(n, 1, generator=generator) < fraction
    return torch.where(chosen, torch.rand(n, 1, generator=generator) * (span[1] - span[0]) + span[0], torch.ones(n, 1))


def _occasional_rotation(n: int, generator: torch.Generator) -> Tensor:
    """[n, 1]: any angle for one sprite in five, else 0, so that one frame does not reveal "spinning"."""
    chosen = torch.rand(n, 1, generator=generator) < 0.2
    return torch.where(chosen, torch.rand(n, 1, generator=generator) * 2 * math.pi, torch.zeros(n, 1))
