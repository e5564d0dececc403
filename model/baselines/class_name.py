from __future__ import annotations

from collections.abc import Sequence

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.baselines.base import ClipLabelEncoder
from vidlex.model.config import TemplateSet
from vidlex.model.text.clip_text import ClipText

_VIDEO_WORDS = ("", "a person ", "a person using ", "a person doing ", "a person during ")
_MORE_VIDEO_WORDS = ("a person performing ", "a person practicing ")

TEMPLATES: dict[TemplateSet, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": ("a photo of a {}.",),
    "default": ("a photo of a {}.", "a video of {}.", "{}"),
    # The 80 templates of CLIP's ImageNet notebook, from open_clip.
    "imagenet": tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES),
    # The 28 templates of CLIP's Kinetics prompts (openai/CLIP, data/prompts.md), also used by Open-VCLIP.
    "video": tuple(
        f"a {medium} of {words}{{}}."
        for medium in ("photo", "video", "example", "demonstration")
        for words in (*_VIDEO_WORDS, *_MORE_VIDEO_WORDS)
    ),
}


class ClassNameLabelEncoder(ClipLabelEncoder):
    """Zero-shot CLIP: the normalised mean of the normalised features of each template, as in open_clip's classifier.

    Has no parameters. The gradient reaches the text tower if that is trained (ViFi-CLIP).
    """

    def __init__(self, clip_text: ClipText, templates: Sequence[str] = ("{}",)) -> None:
        super().__init__(clip_text)
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise ValueError("every template needs exactly one {}, the place of the label")
        self.templates = tuple(templates)

    @property
    def texts_per_label(self) -> int:
        return len(self.templates)

    def texts(self, name: str) -> list[str]:
        # not str.format: braces in the name are literal
        return [template.replace("{}", name) for template in self.templates]

    def check_label(self, name: str) -> None:
        for text in self.texts(name):
            self.clip_text.check(text)

    def forward(self, names: Sequence[str]) -> Tensor:
        if not len(names):
            return torch.zeros(0, self.clip_text.dim, device=self.clip_text.device)
        flat = self.clip_text.encode([text for name in names for text in self.texts(name)])
        features = F.normalize(flat, dim=-1).view(len(names), len(self.templates), -1)  # [V, templates, D]
        return F.normalize(features.mean(dim=1), dim=-1)  # [V, D]
