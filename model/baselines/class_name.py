"""Zero-shot CLIP: a label's feature is that of its name in some templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.classifier import LabelDescription
from model.text.clip_text import ClipText

MAX_TEXTS = 512
"""Texts that go through CLIP at once."""


class ClassNameLabelEncoder(nn.Module):
    """Each template's feature is normalised; their mean is normalised again (open_clip's zero-shot classifier).

    A module without parameters, so that it can stand where the trained label encoder stands.
    """

    def __init__(self, clip_text: ClipText, templates: Sequence[str] = ("{}",)) -> None:
        super().__init__()
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise ValueError("every template needs exactly one {}, where the label goes")
        self.__dict__["clip_text"] = clip_text
        self.clip_text: ClipText
        self.templates = tuple(templates)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassNameLabelEncoder:
        """``to(device)`` and its like: the text tower goes along."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.clip_text.clip._apply(fn)  # type: ignore[no-untyped-call]
        return self

    def texts(self, name: str) -> list[str]:
        """The name in each template. The name is data: braces in it stay braces."""
        return [template.replace("{}", name) for template in self.templates]

    def check_label(self, name: str) -> None:
        """Raise LabelTextError when a template with ``name`` does not fit CLIP's context. Tokenises only."""
        for text in self.texts(name):
            self.clip_text.check(text)

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        """The name in each template. Raises LabelTextError."""
        for name in names:
            self.check_label(name)
        return [LabelDescription(tuple(self.texts(name))) for name in names]

    def forward(self, names: Sequence[str]) -> Tensor:
        """[V, D] unit label features."""
        if not len(names):
            return torch.zeros(0, self.clip_text.dim, device=self.clip_text.device)
        flat = self.clip_text.encode([text for name in names for text in self.texts(name)])
        features = F.normalize(flat, dim=-1).view(len(names), len(self.templates), -1)
        return F.normalize(features.mean(dim=1), dim=-1)

    @torch.no_grad()
    def encode_labels(self, names: Sequence[str]) -> Tensor:
        """[V, D] float32 unit label features on the CPU, without gradient."""
        for name in names:
            self.check_label(name)
        size = max(1, MAX_TEXTS // len(self.templates))
        parts = [self(names[start : start + size]).float().cpu() for start in range(0, len(names), size)]
        return torch.cat(parts) if parts else torch.zeros(0, self.clip_text.dim)
