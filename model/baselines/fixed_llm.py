"""Fixed LLM prompting (Menon & Vondrick, ICLR 2023) for video labels: an LLM lists attributes, frozen CLIP reads them.

Nothing is learned. The LLM's output is untrusted: parsing is bounded in number and size of attributes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.baselines.base import ClipLabelEncoder
from vidlex.model.classifier import LabelDescription
from vidlex.model.text.clip_text import ClipText
from vidlex.model.text.llm import FrozenLLM
from vidlex.model.text.prompts import get_prompt
from vidlex.model.weights.cache import WeightsError

MAX_ATTRIBUTES = 8
MAX_WORDS = 8
MAX_CHARACTERS = 64
NUM_NEW_TOKENS = 48
MAX_ROWS_CPU = 32
MAX_ROWS_GPU = 256  # labels per ``generate`` call
_SEPARATOR = re.compile(r"[,;\n•·]+")
_BULLET = re.compile(r"^(?:[-*–—]+|\(?\d{1,2}[.):])\s*")
_NEXT_EXAMPLE = re.compile(r"\n\s*\n|\n?\s*Label:", re.IGNORECASE)


def parse_attributes(text: str, name: str) -> list[str]:
    """The first ``MAX_ATTRIBUTES`` distinct attributes of a generated list, without the label itself.

    Separators are commas, semicolons, line breaks and bullets; the list ends before a new paragraph or example.
    Attributes that are too long are dropped, not truncated.
    """
    first_list = _NEXT_EXAMPLE.split(text, maxsplit=1)[0]
    attributes: dict[str, str] = {}
    for part in _SEPARATOR.split(first_list):
        words = " ".join(_BULLET.sub("", part.strip()).split()).strip(" .:\"'`*_")
        key = words.casefold()
        if not any(c.isalnum() for c in words) or not words.isprintable() or key == name.casefold():
            continue
        if len(words) <= MAX_CHARACTERS and len(words.split()) <= MAX_WORDS:
            attributes.setdefault(key, words)
    return list(attributes.values())[:MAX_ATTRIBUTES]


class FixedLlmLabelEncoder(ClipLabelEncoder):
    """Mean of the normalised features of ``name, attribute``, or of the plain name without usable attributes.

    The original averages cosines, so the mean is not normalised unless ``renormalize``.
    """

    def __init__(
        self, llm: FrozenLLM, clip_text: ClipText, *, prompt_version: str = "v2", renormalize: bool = False
    ) -> None:
        super().__init__(clip_text)
        if llm.model.config.is_encoder_decoder:
            raise WeightsError("attributes are written by a causal language model, not by an encoder-decoder one")
        self.__dict__["llm"] = llm
        self.llm: FrozenLLM
        self.prompt, self.renormalize = get_prompt(prompt_version), renormalize

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedLlmLabelEncoder:
        super()._apply(fn, recurse)
        self.llm.model._apply(fn)
        return self

    @property
    def texts_per_label(self) -> int:
        return MAX_ATTRIBUTES

    def check_label(self, name: str) -> None:
        self.clip_text.check(name)
        self.llm.label_ids(self.prompt, name, NUM_NEW_TOKENS)

    @torch.no_grad()
    def generate_texts(self, names: Sequence[str]) -> list[str]:
        llm, texts = self.llm, []
        shared = llm.shared_ids(self.prompt)
        size = MAX_ROWS_GPU if llm.device.type == "cuda" else MAX_ROWS_CPU
        for start in range(0, len(names), size):
            chunk = names[start : start + size]
            rows = [[*shared, *llm.label_ids(self.prompt, name, NUM_NEW_TOKENS)] for name in chunk]
            ids, mask = llm.pad(rows)  # [V, M]
            generated = llm.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=NUM_NEW_TOKENS, do_sample=False,
                pad_token_id=llm.tokenizer.eos_token_id,
            )  # fmt: skip
            texts += [llm.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in generated]
        return texts

    def generate_attributes(self, names: Sequence[str]) -> list[list[str]]:
        lists = [parse_attributes(text, name) for text, name in zip(self.generate_texts(names), names, strict=True)]
        return [[a for a in parsed if self._fits(f"{n}, {a}")] for n, parsed in zip(names, lists, strict=True)]

    def _fits(self, text: str) -> bool:
        try:
            self.clip_text.check(text)
        except ValueError:
            return False
        return True

    def texts(self, name: str) -> list[str]:
        return [self.prompt.text(name)]

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        descriptions = super().describe_labels(names)
        return [
            LabelDescription(description.prompts, (tuple(attributes),))
            for description, attributes in zip(descriptions, self.generate_attributes(names), strict=True)
        ]

    def forward(self, names: Sequence[str]) -> Tensor:
        return self.encode_attributes(names, self.generate_attributes(names))

    def encode_attributes(self, names: Sequence[str], attributes: Sequence[Sequence[str]]) -> Tensor:
        texts = [[f"{n}, {a}" for a in listed] or [n] for n, listed in zip(names, attributes, strict=True)]
        if not texts:
            return torch.zeros(0, self.clip_text.dim, device=self.clip_text.device)
        flat = F.normalize(self.clip_text.encode([text for group in texts for text in group]), dim=-1)
        groups = torch.split(flat, [len(group) for group in texts])
        means = torch.stack([group.mean(dim=0) for group in groups])  # [V, D]
        return F.normalize(means, dim=-1) if self.renormalize else means
