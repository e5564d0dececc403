"""``vidlex data build emoji``: held-out videos as mp4 files with a manifest, the labels and the licences of the art."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from vidlex.model.data.manifest import Entry, write_manifest
from vidlex.model.emoji.assets import KEYWORDS, OPENMOJI, PACKAGES, SpriteSheet
from vidlex.model.emoji.protocol import ColumnName
from vidlex.model.emoji.world import World
from vidlex.model.emoji.writer import write_mp4

FPS = 12
SECONDS = 4


def build(
    out: Path,
    art_cache: Path,
    *,
    num_videos: int = 200,
    split: str = "test",
    part: ColumnName = "seen",
    seed: int = 0,
    min_labels: int = 1,
    max_labels: int = 64,
    size: int = 192,
    progress: Callable[[int, int], None] | None = None,
    sheet: SpriteSheet | None = None,
) -> Path:
    """Write ``num_videos`` videos of 4 s with ``min_labels`` to ``max_labels`` true labels; returns the manifest.

    ``part``: the labels of training ("seen"), or a column of the evaluation with labels that training lacks. Videos are
    rendered at 96 pixels and scaled to ``size``. The same arguments give the same videos.
    """
    world = World(art_cache, split=split, part=part, sheet=sheet)
    (out / "videos").mkdir(parents=True, exist_ok=True)
    entries: list[Entry] = []
    generator = world.generator(400_000 + seed)
    while len(entries) < num_videos:
        sample = world.videos(1, FPS * SECONDS, generator)
        if not min_labels <= int(sample.targets.sum()) <= max_labels:
            continue
        name = f"videos/{part}-{split}-{seed:02d}-{len(entries):04d}.mp4"
        write_mp4(sample.frames[0], out / name, fps=FPS, size=size)
        labels = tuple(world.labels[i] for i in torch.nonzero(sample.targets[0])[:, 0].tolist())
        entries.append(Entry(video=name, positives=labels, closed=True, split=split))
        if progress is not None:
            progress(len(entries), num_videos)
    manifest = out / "manifest.jsonl"
    write_manifest(manifest, entries)
    (out / "labels.json").write_text(json.dumps(world.kinds(), indent=1) + "\n", encoding="utf-8")
    licences = [
        {k: v for k, v in asdict(package).items() if k != "sha256"} for package in (*PACKAGES, OPENMOJI, KEYWORDS)
    ]
    (out / "ART.json").write_text(json.dumps(licences, indent=1) + "\n", encoding="utf-8")
    return manifest
