"""A ``ManifestSource`` with a tiny image tower, without a run around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from support.tiny import tiny_clip
from vidlex.model.config import VideoEncoderConfig
from vidlex.model.sources.config import DataConfig, EmojiConfig
from vidlex.model.sources.manifests import ManifestSource
from vidlex.model.sources.open import source_opener
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.source import SourceSetup
from vidlex.model.types import FrameGeometry
from vidlex.model.video.encoder import VideoEncoder

CONFIG = FitConfig(batch_size=6, num_joint_steps=5, bf16=False, num_validation_videos=8)


@contextmanager
def opened(
    manifest: Path,
    out: Path,
    *,
    config: FitConfig = CONFIG,
    trains_tower: bool = False,
    num_frames: int = 3,
    **changes: Any,
) -> Iterator[ManifestSource]:
    clip, _ = tiny_clip()
    video = VideoEncoderConfig(num_branch_blocks=1, num_frames=num_frames)
    encoder = VideoEncoder(clip.visual, video, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    setup = SourceSetup(CONFIG, encoder, FrameGeometry(16), "digest", trains_tower, out)
    data = DataConfig(train=(str(manifest),), num_decode_workers=2, **changes)
    source = cast(ManifestSource, source_opener(data, EmojiConfig(), out)(setup))
    try:
        source.prepare()
        yield source
    finally:
        source.close()
