"""Which motion labels a scene has, from the state of its frames.

Each label has a lower bound, below which it is known to be absent, and an upper bound, from which it is present.
Between the two the pair is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlex.model.camera_work.labels import COLUMN, MOTION_KEYS
from vidlex.model.camera_work.scene import Floats, Scene

MOVE = (0.05, 0.15)  # widths, of a pan or a tilt
ZOOM = (np.log(1.08), np.log(1.25))
ROLL = (np.radians(3.5), np.radians(10))
SHAKE = (0.004, 0.012)  # root mean square, widths
FAST = (0.9, 1.5)  # widths that the picture moves in the whole video
SLOW = (0.4, 0.8)  # above the second value: not slow
DARK, LIGHT = 0.3, 0.75
FLASH = (0.1, 0.35)
FLICKER = (0.06, 0.12)  # mean distance of the gain from the mean of its neighbours
DEFOCUS = (0.003, 0.012)  # widths
OBJECT_MOVE = (0.06, 0.2)
OBJECT_GROWTH = (np.log(1.12), np.log(1.45))
STILL_PATH = 0.1  # widths of the picture's movement, above which the movement of objects is unknown


@dataclass(frozen=True, eq=False)
class Truth:
    present: NDArray[np.bool_]  # [V]
    known: NDArray[np.bool_]  # [V]


class _Sheet:
    def __init__(self) -> None:
        self.present = np.zeros(len(MOTION_KEYS), bool)
        self.known = np.ones(len(MOTION_KEYS), bool)

    def measure(self, key: str, value: float, bounds: tuple[float, float]) -> None:
        self.mark(key, value >= bounds[1], bounds[0] < value < bounds[1])

    def mark(self, key: str, is_present: bool, is_unknown: bool = False) -> None:
        self.present[COLUMN[key]] = is_present
        self.known[COLUMN[key]] = not is_unknown

    def any_of(self, key: str, keys: tuple[str, ...]) -> None:
        columns = [COLUMN[k] for k in keys]
        present = bool((self.present & self.known)[columns].any())
        self.mark(key, present, not present and not self.known[columns].all())

    def has(self, key: str) -> bool:
        return bool(self.present[COLUMN[key]] and self.known[COLUMN[key]])


def label_scene(scene: Scene) -> Truth:
    sheet = _Sheet()
    steps = _camera_steps(scene)  # [n, 4]
    _mark_camera(sheet, scene, steps)
    _mark_transitions(sheet, scene)
    _mark_light(sheet, scene)
    _mark_objects(sheet, scene, path=_path(steps))
    if scene.num_frames == 1:
        sheet.known[:] = False
    if scene.gain.max() < DARK:  # nothing is seen
        sheet.known[:] = False
    return Truth(sheet.present, sheet.known)


def _camera_steps(scene: Scene) -> Floats:
    same = np.flatnonzero(scene.shot[1:] == scene.shot[:-1])
    shot = scene.shot[same]
    steps: Floats = scene.camera[shot, same + 1] - scene.camera[shot, same]
    visible = np.minimum(scene.gain[same], scene.gain[same + 1]) > 0.15
    return steps[visible]


def _path(steps: Floats) -> float:  # widths that the picture's content moves, on average over the picture
    weights = np.array((1.0, 1.0, 0.4, 0.4))  # mean distance from the centre of a square: 0.38 widths
    return float(np.sqrt(((steps * weights) ** 2).sum(1)).sum())


def _mark_camera(sheet: _Sheet, scene: Scene, steps: Floats) -> None:
    amounts = []
    for axis, backward, forward, group, bounds in (
        (0, "pan_left", "pan_right", "panning", MOVE),
        (1, "tilt_up", "tilt_down", "tilting", MOVE),
        (2, "zoom_out", "zoom_in", "zooming", ZOOM),
        (3, "rotation_counterclockwise", "rotation_clockwise", "rotating", ROLL),
    ):
        values = steps[:, axis]
        for key, amount in ((backward, -values[values < 0].sum()), (forward, values[values > 0].sum())):
            sheet.measure(key, float(amount), bounds)
            amounts.append(float(amount) / bounds[1])
        sheet.any_of(group, (backward, forward))
    centred = scene.shake - scene.shake.mean(0)
    shake = float(np.sqrt((centred**2 * (1, 1, 0.15)).sum(1).mean())) if len(steps) else 0.0
    sheet.measure("handheld_shake", shake, SHAKE)
    path = _path(steps)
    moves = max(amounts, default=0.0)
    is_still = path <= 0.03 and shake <= SHAKE[0]
    is_moving = moves >= 1 or shake >= SHAKE[1]
    sheet.mark("static_shot", is_still, not (is_still or is_moving))
    sheet.mark("moving_camera", is_moving, not (is_still or is_moving))
    sheet.measure("fast_movement", path, FAST)
    sheet.mark(
        "slow_movement",
        moves >= 1 and path <= SLOW[0],
        not (moves >= 1 and path <= SLOW[0]) and MOVE[0] < path < SLOW[1],
    )


def _mark_transitions(sheet: _Sheet, scene: Scene) -> None:
    changed = np.flatnonzero(scene.shot[1:] != scene.shot[:-1])
    visible = [min(scene.gain[i], scene.gain[i + 1]) > 0.2 for i in changed]
    blends = [max(scene.blend[i], scene.blend[i + 1]) for i in changed]
    is_cut = any(blend < 0.1 and seen for blend, seen in zip(blends, visible, strict=True))
    is_unclear = any(blend < 0.2 for blend in blends)
    sheet.mark("cut", is_cut, not is_cut and is_unclear)
    blended = float((scene.blend * (scene.gain > 0.3)).max())
    sheet.measure("dissolve", blended, (0.08, 0.2))


def _mark_light(sheet: _Sheet, scene: Scene) -> None:
    gain = scene.gain
    top = float(gain.max())
    for key, values in (("fade_in", gain), ("fade_out", gain[::-1])):
        edge = float(values[0])
        middle = values[: int(np.argmax(values >= 0.9 * top)) + 1]
        is_fade = edge <= DARK and top >= LIGHT and bool((np.diff(middle) > -0.05).all())
        sheet.mark(key, is_fade, not is_fade and edge < LIGHT * top)
    sheet.any_of("fading", ("fade_in", "fade_out"))
    others = scene.flash - np.median(scene.flash)
    sheet.measure("flash", float(others.max()), FLASH)
    second = np.abs(gain[2:] - 2 * gain[1:-1] + gain[:-2]) / 2 if len(gain) > 2 else np.zeros(1)
    sheet.measure("flicker", float(second.mean()), FLICKER)
    change = np.diff(scene.defocus)
    sheet.measure("focus_out", float(change[change > 0].sum()), DEFOCUS)
    sheet.measure("focus_in", float(-change[change < 0].sum()), DEFOCUS)


def _mark_objects(sheet: _Sheet, scene: Scene, *, path: float) -> None:
    amounts = np.zeros((len(scene.objects) + 1, 6))
    for index, places in enumerate(scene.objects):
        seen = (scene.shot == scene.object_shot[index]) & (scene.gain > 0.3) & (scene.blend < 0.3)
        inside = (np.abs(places[:, :2]) < 0.5 + 0.2 * np.exp(places[:, 2:3])).all(1)
        step = np.diff(places, axis=0)[(seen & inside)[1:] & (seen & inside)[:-1]]
        for column, values in enumerate((-step[:, 0], step[:, 0], -step[:, 1], step[:, 1], step[:, 2], -step[:, 2])):
            amounts[index, column] = values[values > 0].sum()
    most = amounts.max(0)
    keys = ("moving_left", "moving_right", "moving_up", "moving_down", "approaching", "receding")
    for key, amount in zip(keys, most, strict=True):
        bounds = OBJECT_GROWTH if key in ("approaching", "receding") else OBJECT_MOVE
        sheet.measure(key, float(amount), bounds)
        if len(scene.objects) and path > STILL_PATH:
            sheet.mark(key, False, is_unknown=True)
