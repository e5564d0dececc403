"""What scoring a video needs of a vocabulary: that of a served model, or one outside any service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vidlex.service.engine.video_queue import EncodedVideo
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.models.served_model import ModelFacts
from vidlex.service.sharing.requester import Requester


class VideoEncoder(Protocol):
    def encode_videos(
        self,
        videos: Sequence[NDArray[np.uint8]],
        *,
        requester: Requester | None = None,
        timeout_seconds: float = 60.0,
        wait_for_room: bool = False,
    ) -> list[EncodedVideo]:
        """As ``Engine.encode_videos``."""


class CandidateEncoder(Protocol):
    def candidates(
        self, names: Sequence[str], requester: Requester | None = None
    ) -> tuple[list[str], NDArray[np.float32]]:
        """As ``Labeler.candidates``."""


class ScoringVocabulary(Protocol):
    @property
    def namespace(self) -> str: ...

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def engine(self) -> VideoEncoder: ...

    @property
    def index(self) -> LabelIndex: ...

    @property
    def labeler(self) -> CandidateEncoder | None: ...  # None: no ``candidate_labels``
