"""What an extension may change in a training step. The paper's step has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class StepFeatures:
    """Of a micro-batch of a step, with gradient to whatever the stage trains."""

    videos: Tensor  # [b, D] unit features
    labels: Tensor  # [v, D]
    index: Tensor  # [v], of the labels in the stage's vocabulary
    frame_means: Tensor | None  # [b, D] unit features of the frozen tower; None on fixed features
    scale: Tensor  # of the logits, without gradient
    num_videos: int  # of the whole step
    num_labels: int  # of the whole step


class Extension:
    def change_states(self, states: Tensor, step: int) -> Tensor:
        """``states``: [v, N, K, L, d] of all labels of the step, on the device of training."""
        return states

    def losses(self, features: StepFeatures) -> Mapping[str, tuple[float, Tensor]]:
        """Weight and loss by name. The losses of the micro-batches add up to that of the step."""
        return {}
