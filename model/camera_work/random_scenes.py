"""Scenes drawn at random: camera movement, transitions, light, focus and objects, each independent of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidlex.model.camera_work.scene import Floats, Ints, Scene, integrate_centre

Generator = np.random.Generator

MIN_DETAIL = 0.3  # of a place whose movement can be seen, where movements stay within the source


@dataclass(frozen=True)
class SceneConfig:
    num_frames: int = 12
    """Frames of a scene."""
    max_widths: float = 3.2
    """Widths of the picture that a pan covers at most."""
    keep_inside: bool = False
    """Choose movements that stay within the source; otherwise the source is continued by reflection."""
    event_rate: float = 1.0
    """Factor of the frequency of transitions, changes of light and objects."""


@dataclass(frozen=True)
class SourceSize:
    width: int  # pixels
    height: int


def random_scene(
    rng: Generator,
    sizes: Sequence[SourceSize],
    num_objects: int,
    config: SceneConfig,
    detail: Sequence[Floats] | None = None,
) -> Scene:
    """A scene of at most ``len(sizes)`` shots. ``detail``: per source [h, w], how much is to be seen at a place."""
    t = config.num_frames
    shot, other, blend, num_shots = _transitions(rng, t, len(sizes), config.event_rate)
    camera = np.zeros((len(sizes), t, 4))
    centre = np.zeros((len(sizes), t, 2))
    log_width = np.zeros((len(sizes), t))
    shake, is_smooth = _shake(rng, t)
    for index in range(num_shots):
        camera[index], centre[index], log_width[index] = _shot(
            rng, t, sizes[index], config, detail[index] if detail is not None else None
        )
    for index in range(num_shots, len(sizes)):
        centre[index], log_width[index] = (
            (sizes[index].width / 2, sizes[index].height / 2),
            np.log(sizes[index].height / 2),
        )
    objects, object_shot = _objects(
        rng, t, num_objects, num_shots, config.event_rate, is_still=bool(np.abs(camera).max() < 0.1)
    )
    gain, flash = _light(rng, t, config.event_rate)
    shutter = rng.uniform(0.0, 0.3) * (rng.random() < 0.6)
    speed = np.stack([np.gradient(camera[s, :, :2], axis=0) for s in range(len(sizes))])
    return Scene(
        shot=shot,
        other_shot=other,
        blend=blend,
        camera=camera,
        centre=centre,
        log_width=log_width,
        shake=shake,
        blur_length=speed[shot, np.arange(t)] * shutter + (0 if is_smooth else 0.3) * np.abs(shake[:, :2]),
        gain=gain,
        flash=flash,
        defocus=_defocus(rng, t, config.event_rate),
        objects=objects,
        object_shot=object_shot,
        noise_std=np.full(t, rng.uniform(0, 0.02) * (rng.random() < 0.7)),
        seed=rng.integers(0, 2**31, t),
        moment=np.arange(t),
    )


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _sign(rng: Generator) -> float:
    return float(rng.choice((-1.0, 1.0)))


def _course(rng: Generator, t: int) -> Floats:
    """[T] a course from 0 to 1, or with a way back."""
    u = (np.arange(t) + 0.5) / t
    if rng.random() < 0.4:
        start = rng.uniform(0, 0.6)
        end = rng.uniform(start + 0.3, 1.0)
        u = np.clip((u - start) / (end - start), 0, 1)
    kind = rng.integers(5)
    if kind == 0:
        u = u * u * (3 - 2 * u)
    elif kind == 1:
        u = u**1.8
    elif kind == 2:
        u = 1 - (1 - u) ** 1.8
    if rng.random() < 0.1:
        u = 1 - np.abs(2 * u - 1)
    return u


def _distance(rng: Generator, most: float) -> float:
    return _log_uniform(rng, 0.07, most) if rng.random() < 0.5 else float(rng.uniform(0.15, most))


def _amounts(rng: Generator, config: SceneConfig) -> Floats:
    """[4] signed amounts of a shot's movement."""
    amounts = np.zeros(4)
    num_moves = rng.choice(4, p=(0.36, 0.37, 0.2, 0.07))
    for axis in rng.choice(4, num_moves, replace=False, p=(0.3, 0.24, 0.24, 0.22)):
        amounts[axis] = (
            _sign(rng)
            * (
                _distance(rng, config.max_widths),
                _distance(rng, 0.8 * config.max_widths),
                _log_uniform(rng, np.log(1.07), np.log(3.0)),
                _log_uniform(rng, np.radians(4), np.radians(150)),
            )[axis]
        )
    return amounts


def _shot(
    rng: Generator, t: int, size: SourceSize, config: SceneConfig, detail: Floats | None
) -> tuple[Floats, Floats, Floats]:
    """Camera [T, 4], centre [T, 2] and log width [T]."""
    short = min(size.width, size.height)
    best: tuple[float, Floats, Floats, Floats] | None = None
    for _attempt in range(60 if config.keep_inside else 3):
        amounts = _amounts(rng, config)
        camera = np.stack([amount * _course(rng, t) for amount in amounts], axis=1)
        if rng.random() < 0.3 and amounts.any():
            camera += np.cumsum(rng.normal(0, 0.002, (t, 4)), axis=0)
        base = np.log(short * rng.uniform(0.3, 0.75))
        log_width = base - (camera[:, 2] - camera[:, 2].mean())
        log_width += min(0.0, np.log(0.95 * short) - log_width.max())
        start = np.array((rng.uniform(0.15, 0.85) * size.width, rng.uniform(0.15, 0.85) * size.height))
        centre = integrate_centre(camera, log_width, np.zeros(2))
        centre += start - centre.mean(0)
        outside = _outside(centre, log_width, camera[:, 3], size)
        seen = _detail_at(detail, centre, size)
        score = min(seen, MIN_DETAIL) - 9 * max(outside, 0.0) if config.keep_inside else seen - 0.2 * outside
        if best is None or score > best[0]:
            best = score, camera, centre, log_width
        if config.keep_inside and score >= MIN_DETAIL:
            break
    assert best is not None
    return best[1], best[2], best[3]


def _outside(centre: Floats, log_width: Floats, angle: Floats, size: SourceSize) -> float:  # widths of the picture
    width = np.exp(log_width)
    half = width / 2 * (np.abs(np.cos(angle)) + np.abs(np.sin(angle)))
    over = np.stack(
        (half - centre[:, 0], centre[:, 0] + half - size.width, half - centre[:, 1], centre[:, 1] + half - size.height)
    )
    return float((over / width).max())


def _detail_at(detail: Floats | None, centre: Floats, size: SourceSize) -> float:
    if detail is None:
        return 1.0
    h, w = detail.shape
    x = np.clip(centre[:, 0] / size.width * w, 0, w - 1).astype(int)
    y = np.clip(centre[:, 1] / size.height * h, 0, h - 1).astype(int)
    return float(detail[y, x].mean())


def _shake(rng: Generator, t: int) -> tuple[Floats, bool]:
    kind = rng.random()
    if kind < 0.25:
        std = _log_uniform(rng, 0.008, 0.07)
        shake = rng.normal(0, std, (t, 3)) * (1, rng.uniform(0.5, 1.2), rng.uniform(0, 0.8))
        return shake, rng.random() < 0.5
    std = rng.uniform(0, 0.002) if kind < 0.6 else 0.0
    return rng.normal(0, std, (t, 3)), True


def _transitions(rng: Generator, t: int, max_shots: int, rate: float) -> tuple[Ints, Ints, Floats, int]:
    shot, blend = np.zeros(t, np.int64), np.zeros(t)
    other = shot.copy()
    kind = rng.random()
    if t < 4 or max_shots < 2 or kind > 0.27 * rate:
        return shot, other, blend, 1
    if kind < 0.17 * rate:  # cuts
        num_cuts = int(
            rng.choice(min(3, max_shots - 1), p=((1.0,), (0.7, 0.3), (0.6, 0.25, 0.15))[min(3, max_shots - 1) - 1])
        )
        places = np.sort(rng.choice(np.arange(1, t), num_cuts + 1, replace=False))
        shot = np.searchsorted(places, np.arange(t), side="right").astype(np.int64)
        return shot, shot.copy(), blend, num_cuts + 2
    middle, length = rng.uniform(0.15 * t, 0.85 * t), rng.uniform(1.5, 0.6 * t)
    weight = np.clip((np.arange(t) + 0.5 - middle) / length + 0.5, 0, 1)  # of the second shot
    shot = (weight > 0.5).astype(np.int64)
    blend = np.minimum(weight, 1 - weight)
    return shot, np.where(blend > 0, 1 - shot, shot), blend, 2


def _light(rng: Generator, t: int, rate: float) -> tuple[Floats, Floats]:
    """Gain [T] and flash [T]."""
    frame = np.arange(t) + 0.5
    gain: Floats = np.ones(t)
    flash: Floats = np.zeros(t)
    kind = rng.random()
    if kind < 0.22 * rate:
        ways = rng.choice(3, p=(0.42, 0.42, 0.16))
        if ways in (0, 2):
            gain *= np.clip((frame - rng.uniform(0, 0.6)) / rng.uniform(1.5, 0.5 * t), 0, 1)
        if ways in (1, 2):
            gain *= np.clip((t - frame - rng.uniform(0, 0.6)) / rng.uniform(1.5, 0.5 * t), 0, 1)
    elif kind < 0.32 * rate:
        for place in rng.choice(t, rng.integers(1, 3), replace=False):
            flash[place] = rng.uniform(0.4, 0.98)
            if place + 1 < t and rng.random() < 0.3:
                flash[place + 1] = flash[place] * rng.uniform(0.1, 0.5)
    elif kind < 0.42 * rate:
        strength = rng.uniform(0.15, 0.6)
        gain -= strength * (rng.random(t) if rng.random() < 0.5 else (rng.random(t) < 0.5))
    elif kind < 0.6:  # slow change of exposure, or a darker or lighter film: no label
        gain += rng.uniform(-0.25, 0.25) + rng.uniform(-0.12, 0.12) * np.sin(frame / t * rng.uniform(1, 4))
    return gain, flash


def _defocus(rng: Generator, t: int, rate: float) -> Floats:
    kind = rng.random()
    if kind < 0.12 * rate:
        most = _log_uniform(rng, 0.012, 0.04)
        course = np.sort(_course(rng, t))
        return most * (course if rng.random() < 0.5 else 1 - course)
    return np.full(t, rng.uniform(0, 0.006) if kind < 0.3 else 0.0)


def _objects(
    rng: Generator, t: int, num_objects: int, num_shots: int, rate: float, *, is_still: bool
) -> tuple[Floats, Ints]:
    """[O, T, 4] places and [O] shots. The places of objects that never enter the picture are far outside."""
    places = np.zeros((num_objects, t, 4))
    places[:, :, 0] = 10.0
    shots = rng.integers(0, num_shots, num_objects)
    if rng.random() > (0.75 if is_still else 0.3) * rate:
        return places, shots
    num_shown = int(rng.choice(num_objects, p=_falling(num_objects))) + 1
    for index in range(num_shown):
        size = _log_uniform(rng, 0.15, 0.6)
        start = rng.uniform(-0.42, 0.42, 2)
        angle0, growth, turn = rng.normal(0, 0.1), 0.0, 0.0
        move: Floats = np.zeros(2)
        kind = rng.random()
        if kind < 0.62:
            direction = rng.choice(4, p=(0.32, 0.32, 0.18, 0.18))
            amount = _log_uniform(rng, 0.12, 1.3)
            move = np.array(((-1, 0), (1, 0), (0, -1), (0, 1))[direction]) * amount
            if rng.random() < 0.25:
                move = move + rng.normal(0, 0.25 * amount, 2)
            if rng.random() < 0.7:  # passes through the picture
                start = rng.uniform(-0.3, 0.3, 2) - move / 2
        elif kind < 0.85:
            growth = _sign(rng) * _log_uniform(rng, 0.12, 1.6)
            start = rng.uniform(-0.25, 0.25, 2)
        if rng.random() < 0.15:
            turn = rng.normal(0, 0.6)
        course = _course(rng, t)[:, None]
        wiggle = rng.normal(0, _log_uniform(rng, 0.001, 0.03) * (rng.random() < 0.4), (t, 2))
        places[index, :, :2] = start + move * course + wiggle
        places[index, :, 2] = np.log(size) + growth * (course[:, 0] - 0.5)
        places[index, :, 3] = angle0 + turn * course[:, 0]
    return places, shots


def _falling(n: int) -> Floats:
    weights = 0.45 ** np.arange(n)
    return np.asarray(weights / weights.sum())
