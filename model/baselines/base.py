"""What the label encoders of all baselines share: CLIP's text tower kept outside, checks, batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vidlex.model.classifier import LabelDescription
from vidlex.model.text.clip_text import ClipText

MAX_TEXTS = 512
"""Texts that go through CLIP at once."""


class ClipLabelEncoder(nn.Module):
    """A label encoder on CLIP's text tower. Its parameters are the learned ones alone; the tower is moved along.

    A subclass gives ``texts_per_label``, ``texts``, ``check_label`` and ``forward``: names to [V, D], length at most 1.
    """

    def __init__(self, clip_text: ClipText) -> None:
        super().__init__()
        self.__dict__["clip_text"] = clip_text
        self.clip_text: ClipText

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClipLabelEncoder:
        """``to(device)`` and its like: the text tower goes along."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.clip_text.clip._apply(fn)  # type: ignore[no-untyped-call]
        return self

    @property
    def texts_per_label(self) -> int:
        return 1

    def check_label(self, name: str) -> None:
        """Raise LabelTextError when ``name`` does not fit CLIP's context whole. Tokenises only."""
        raise NotImplementedError

    def texts(self, name: str) -> list[str]:
        """What CLIP reads of a label, for people; learned vectors stand in brackets."""
        raise NotImplementedError

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        """The texts of each name. Raises LabelTextError."""
        for name in names:
            self.check_label(name)
        return [LabelDescription(tuple(self.texts(name))) for name in names]

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps."""
        return dict(self.state_dict())

    @torch.no_grad()
    def encode_labels(self, names: Sequence[str]) -> Tensor:
        """[V, D] float32 label features on the CPU, without gradient."""
        for name in names:
            self.check_label(name)
        size = max(1, MAX_TEXTS // self.texts_per_label)
        parts = [self(names[start : start + size]).float().cpu() for start in range(0, len(names), size)]
        return torch.cat(parts) if parts else torch.zeros(0, self.clip_text.dim)
