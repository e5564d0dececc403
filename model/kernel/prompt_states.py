"""States of a frozen LLM for a label after each of several fixed prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vidlex.model.text.encoder_decoder import FrozenEncoderDecoder
from vidlex.model.text.llm import FrozenLLM, SharedPrompt
from vidlex.model.text.prompts import Prompt, get_prompt
from vidlex.model.weights.cache import WeightsError

NUM_DESCRIBED_TOKENS = 6

MAX_ROWS_CPU = 128
MAX_ROWS_GPU = 2048  # rows per pass of the LLM
MIN_ROWS = 12  # a pass with fewer takes as long: it reads all weights


class PromptStates:
    """The state of a label under a prompt is the one that predicts the first decoded token: the last position of
    ``prompt.text(name)``, after the final norm. The part of a prompt before the label is read once and kept.

    Raises WeightsError for an encoder-decoder model.
    """

    def __init__(self, llm: FrozenLLM, versions: Sequence[str]) -> None:
        if isinstance(llm, FrozenEncoderDecoder):
            raise WeightsError("prompts are continued by a causal language model, not by an encoder-decoder one")
        self.llm = llm
        self.prompts = tuple(get_prompt(version) for version in versions)
        self._shared: list[SharedPrompt] = []

    def reset(self) -> None:
        """Call it after a change of the LLM's device or implementation."""
        self._shared = []

    def check(self, name: str) -> None:
        """Raises LabelTextError. Tokenises only."""
        for prompt in self.prompts:
            self.llm.label_ids(prompt, name, NUM_DESCRIBED_TOKENS)

    @torch.no_grad()
    def states(self, names: Sequence[str], *, progress: Callable[[int], None] | None = None) -> Tensor:
        """[V, P, d] float32 on the CPU. ``progress`` receives the number of finished names."""
        out = torch.empty(len(names), len(self.prompts), self.llm.width)
        done = 0
        for chunk in self._chunks(names):
            some = [names[i] for i in chunk]
            for p, (prompt, shared) in enumerate(zip(self.prompts, self._read_prompts(), strict=True)):
                decoded = self.llm.decode(shared, *self._padded_ids(prompt, some), 1, with_last_token=False)
                out[chunk, p] = decoded.states[:, 0, 0].float().cpu()
            done += len(chunk)
            if progress is not None:
                progress(done)
        return out

    @torch.no_grad()
    def decoded_texts(self, names: Sequence[str]) -> list[list[str]]:
        """What the LLM decodes for each name after each prompt, [V][P]."""
        out: list[list[str]] = [[] for _ in names]
        for chunk in self._chunks(names):
            some = [names[i] for i in chunk]
            for prompt, shared in zip(self.prompts, self._read_prompts(), strict=True):
                decoded = self.llm.decode(
                    shared, *self._padded_ids(prompt, some), NUM_DESCRIBED_TOKENS, distinct=prompt.distinct
                )
                for i, tokens in zip(chunk, decoded.tokens, strict=True):
                    out[i].append(self.llm.text(tokens[0]))
        return out

    def _read_prompts(self) -> list[SharedPrompt]:
        if not self._shared:
            for prompt in self.prompts:
                first, *others = self.llm.shared_ids(prompt)
                # the place of a learned prefix is taken by the first token
                prefix = self.llm.embedding(torch.tensor([first], device=self.llm.device))
                self._shared.append(self.llm.prefill(prefix, others))
        return self._shared

    def _padded_ids(self, prompt: Prompt, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.llm.pad([self.llm.label_ids(prompt, name, NUM_DESCRIBED_TOKENS) for name in names])

    def _chunks(self, names: Sequence[str]) -> list[list[int]]:
        """Indices of the names of each pass: of equal length where there are enough of them, so that few positions are
        padding."""
        max_rows = MAX_ROWS_GPU if self.llm.device.type == "cuda" else MAX_ROWS_CPU
        lengths = [len(self.llm.token_ids(f" {name}")) for name in names]
        chunks: list[list[int]] = []
        for i in sorted(range(len(names)), key=lambda i: lengths[i]):
            chunk = chunks[-1] if chunks else []
            is_longer = bool(chunk) and lengths[i] > lengths[chunk[-1]]
            if not chunk or len(chunk) == max_rows or (is_longer and len(chunk) >= MIN_ROWS):
                chunks.append([])
            chunks[-1].append(i)
        return chunks
