"""Dummy classifiers with a record of their calls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidlex.model.dummy import DummyClassifier


class RecordingClassifier(DummyClassifier):
    def __init__(self, version: int = 1) -> None:
        super().__init__(version)
        self.names: list[str] = []  # of all encoded labels

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        self.names += names
        return super().encode_labels(names)
