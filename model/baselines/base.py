from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vidlex.model.classifier import LabelDescription
from vidlex.model.text.clip_text import ClipText

MAX_TEXTS = 512  # texts per pass of CLIP's text tower


class ClipLabelEncoder(nn.Module):
    """Base of the baselines: CLIP's text tower is not a submodule, but moves with the encoder.

    A subclass implements ``texts_per_label``, ``texts``, ``check_label`` and ``forward``: V names -> [V, D] of length
    at most 1.
    """

    def __init__(self, clip_text: ClipText) -> None:
        super().__init__()
        self.__dict__["clip_text"] = clip_text
        self.clip_text: ClipText

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClipLabelEncoder:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.clip_text.clip._apply(fn)  # type: ignore[no-untyped-call]
        return self

    @property
    def texts_per_label(self) -> int:
        return 1

    def check_label(self, name: str) -> None:
        """Raises LabelTextError. Tokenises only."""
        raise NotImplementedError

    def texts(self, name: str) -> list[str]:  # learned vectors in brackets
        raise NotImplementedError

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        for name in names:
            self.check_label(name)
        return [LabelDescription(tuple(self.texts(name))) for name in names]

    def trainable_state_dict(self) -> dict[str, Tensor]:
        return dict(self.state_dict())

    @torch.no_grad()
    def encode_labels(self, names: Sequence[str]) -> Tensor:
        for name in names:
            self.check_label(name)
        size = max(1, MAX_TEXTS // self.texts_per_label)
        parts = [self(names[start : start + size]).float().cpu() for start in range(0, len(names), size)]
        # [V, D] float32 on the CPU
        return torch.cat(parts) if parts else torch.zeros(0, self.clip_text.dim)
