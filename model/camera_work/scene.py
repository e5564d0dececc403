"""The state of every frame of a rendered scene: what is shown is known exactly.

Units: lengths on the screen in widths of the (square) picture, angles in radians, time in frames. The screen's y axis
points down, so a positive angle turns the content clockwise.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scene:
    """S shots, each of one source of frames; O objects pasted on the screen; T frames."""

    shot: Ints  # [T] the shot that dominates the frame
    other_shot: Ints  # [T] the shot that is blended in; equal to ``shot`` if there is none
    blend: Floats  # [T] weight of ``other_shot``, 0..0.5
    # [S, T, 4]: the camera of each shot, cumulative: widths moved to the right, widths moved down, log magnification,
    # angle of the content; only differences between frames of one shot count
    camera: Floats
    centre: Floats  # [S, T, 2] x and y of the picture's centre, in pixels of the source
    log_width: Floats  # [S, T] log of the picture's width in pixels of the source
    shake: Floats  # [T, 3] x, y and angle added to the camera of the frame
    blur_length: Floats  # [T, 2] x and y of the camera's movement during the exposure
    gain: Floats  # [T] 0 black, 1 normal
    flash: Floats  # [T] 0 none, 1 white
    defocus: Floats  # [T] standard deviation of the blur
    objects: Floats  # [O, T, 4] x, y of the centre from the picture's centre, log of the width, angle
    object_shot: Ints  # [O] the shot that shows it
    noise_std: Floats  # [T] of the 0..1 range
    seed: Ints  # [T] of the noise
    moment: Ints  # [T] index of the frame in a source that moves itself

    @property
    def num_frames(self) -> int:
        return len(self.shot)

    def take(self, frames: Ints | slice) -> Scene:
        """The scene with these frames, in this order."""
        own_axis = {"camera": 1, "centre": 1, "log_width": 1, "objects": 1}
        values = {}
        for field in fields(self):
            value = getattr(self, field.name)
            axis = own_axis.get(field.name, 0)
            index = (slice(None),) * axis + (frames,)
            values[field.name] = value if field.name == "object_shot" else value[index]
        return Scene(**values)

    def reversed(self) -> Scene:
        return self.take(np.arange(self.num_frames)[::-1])


def integrate_centre(camera: Floats, log_width: Floats, start: Floats) -> Floats:
    """[T, 2] centres in pixels of the source, for one shot's ``camera`` [T, 4] and ``log_width`` [T]."""
    step = np.diff(camera, axis=0)  # [T - 1, 4]
    width = np.exp((log_width[1:] + log_width[:-1]) / 2)
    angle = (camera[1:, 3] + camera[:-1, 3]) / 2
    x, y = step[:, 0] * width, step[:, 1] * width
    # content that turns by +angle is seen by a camera that turns by -angle
    moved = np.stack((np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y), axis=1)
    return start + np.concatenate((np.zeros((1, 2)), np.cumsum(moved, axis=0)))
