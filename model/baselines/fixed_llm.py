"""Fixed LLM prompting (Menon & Vondrick, ICLR 2023) for video labels: an LLM lists attributes, frozen CLIP reads them.

Nothing is learned. What a language model writes is a stranger's text: it is parsed within limits and never trusted.
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

MAX_ATTRIBUTES = 8
MAX_WORDS = 8
MAX_CHARACTERS = 64
NUM_NEW_TOKENS = 48
MAX_ROWS_CPU = 32
MAX_ROWS_GPU = 256
"""Labels that are written at once."""
_SEPARATOR = re.compile(r"[,;\n•·]+")
_BULLET = re.compile(r"^(?:[-*–—]+|\(?\d{1,2}[.):])\s*")
_NEXT_EXAMPLE = re.compile(r"\n\s*\n|\n?\s*Label:", re.IGNORECASE)


def parse_attributes(text: str, name: str) -> list[str]:
    """Up to ``MAX_ATTRIBUTES`` attributes out of a written list, in order, each once, none the label itself.

    Separators are commas, semicolons, line breaks and bullets; the list ends where a new paragraph or example begins.
    Too long parts are dropped, never cut.
    """
    own = _NEXT_EXAMPLE.split(text, maxsplit=1)[0]
    found: dict[str, str] = {}
    for part in _SEPARATOR.split(own):
        words = " ".join(_BULLET.sub("", part.strip()).split()).strip(" .:\"'`*_")
        key = words.casefold()
        if not any(c.isalnum() for c in words) or not words.isprintable() or key == name.casefold():
            continue
        if len(words) <= MAX_CHARACTERS and len(words.split()) <= MAX_WORDS:
            found.setdefault(key, words)
    return list(found.values())[:MAX_ATTRIBUTES]


class FixedLlmLabelEncoder(ClipLabelEncoder):
    """Mean of the normalised features of ``name, attribute``; of the bare name where nothing usable was written.

    As the original averages cosines, the mean is not normalised again unless ``renormalize``.
    """

    def __init__(
        self, llm: FrozenLLM, clip_text: ClipText, *, prompt_version: str = "v2", renormalize: bool = False
    ) -> None:
        super().__init__(clip_text)
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
    def written(self, names: Sequence[str]) -> list[str]:
        """What the LLM writes behind the prompt of each name, greedily."""
        llm, out = self.llm, []
        shared = llm.shared_ids(self.prompt)
        most = MAX_ROWS_GPU if llm.device.type == "cuda" else MAX_ROWS_CPU
        for start in range(0, len(names), most):
            some = names[start : start + most]
            rows = [[*shared, *llm.label_ids(self.prompt, name, NUM_NEW_TOKENS)] for name in some]
            ids, mask = llm.pad(rows)
            done = llm.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=NUM_NEW_TOKENS, do_sample=False,
                pad_token_id=llm.tokenizer.eos_token_id,
            )  # fmt: skip
            out += [llm.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in done]
        return out

    def attributes(self, names: Sequence[str]) -> list[list[str]]:
        """The parsed attributes of each name, without those that do not fit CLIP beside it."""
        lists = [parse_attributes(text, name) for text, name in zip(self.written(names), names, strict=True)]
        return [[a for a in found if self._fits(f"{n}, {a}")] for n, found in zip(names, lists, strict=True)]

    def _fits(self, text: str) -> bool:
        try:
            self.clip_text.check(text)
        except ValueError:
            return False
        return True

    def texts(self, name: str) -> list[str]:
        return [self.prompt.text(name)]

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        """The LLM's prompt of each name and the attributes that it listed. Raises LabelTextError."""
        plain = super().describe_labels(names)
        return [
            LabelDescription(description.prompts, (tuple(found),))
            for description, found in zip(plain, self.attributes(names), strict=True)
        ]

    def forward(self, names: Sequence[str]) -> Tensor:
        """[V, D] label features."""
        return self.encode_attributes(names, self.attributes(names))

    def encode_attributes(self, names: Sequence[str], attributes: Sequence[Sequence[str]]) -> Tensor:
        """[V, D] from given attributes of each name."""
        texts = [[f"{n}, {a}" for a in found] or [n] for n, found in zip(names, attributes, strict=True)]
        if not texts:
            return torch.zeros(0, self.clip_text.dim, device=self.clip_text.device)
        flat = F.normalize(self.clip_text.encode([text for group in texts for text in group]), dim=-1)
        means = torch.stack([part.mean(dim=0) for part in torch.split(flat, [len(group) for group in texts])])
        return F.normalize(means, dim=-1) if self.renormalize else means
