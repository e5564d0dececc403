"""A folder of small labelled videos in several containers, with its manifest.

A coloured square moves to the left or to the right over a dark or a bright background. "moving right" is the only label
that no single frame shows: every clip starts at a random place.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from support.videos import write_video
from vidlex.model.data.manifest import Entry, write_manifest

SIDE, NUM_FRAMES = 48, 12
COLOURS = {"red": (230, 30, 30), "green": (30, 210, 30), "blue": (40, 40, 240), "yellow": (230, 220, 30)}
MOTION = "moving right"
LABELS = (*COLOURS, "bright background", "large", MOTION, "framed")
CONTAINERS = ((".mp4", "libx264"), (".mkv", "mpeg4"), (".webm", "libvpx"), (".mov", "mjpeg"))


def draw(labels: Sequence[str], shift: int, number: int) -> NDArray[np.uint8]:
    picture = np.full((SIDE, SIDE, 3), 200 if "bright background" in labels else 25, np.uint8)
    size = 22 if "large" in labels else 12
    step = 3 if MOTION in labels else -3
    left = (shift + step * number) % (SIDE - size)
    colour = next(COLOURS[name] for name in labels if name in COLOURS)
    picture[12 : 12 + size, left : left + size] = colour
    if "framed" in labels:
        picture[:4], picture[-4:], picture[:, :4], picture[:, -4:] = 128, 128, 128, 128
    return picture


def write_clips(
    folder: Path, num: int, *, seed: int = 0, split: str | None = None, first: int = 0, closed: bool = True
) -> list[Entry]:
    """``num`` videos in ``folder``, named from number ``first``, and their entries."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    entries = []
    for index in range(first, first + num):
        labels = [rng.choice([*COLOURS]), *(name for name in LABELS if name not in COLOURS and rng.random() < 0.4)]
        suffix, codec = CONTAINERS[index % len(CONTAINERS)]
        shift = rng.randrange(SIDE)
        write_video(
            folder / f"{index:03d}{suffix}", width=SIDE, height=SIDE, num_frames=NUM_FRAMES, codec=codec,
            pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p",
            picture=lambda number, labels=labels, shift=shift: draw(labels, shift, number),  # type: ignore[misc]
        )  # fmt: skip
        entries.append(Entry(f"{index:03d}{suffix}", tuple(labels), closed=closed, split=split))
    return entries


def write_dataset(folder: Path, *, num_train: int = 44, num_validation: int = 16) -> Path:
    """A manifest of ``num_train`` + ``num_validation`` videos, and kinds of some labels."""
    entries = write_clips(folder, num_train, split="train")
    entries += write_clips(folder, num_validation, seed=1, split="val", first=num_train)
    write_manifest(folder / "manifest.jsonl", entries)
    kinds = {name: "colour" if name in COLOURS else "motion" if name == MOTION else None for name in LABELS}
    (folder / "labels.json").write_text(json.dumps(kinds))
    return folder / "manifest.jsonl"
