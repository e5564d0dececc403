"""A frozen T5 (FLAN-T5) in place of the causal language model.

The encoder reads ``[prefix | prompt before the label | label and prompt after it]`` in both directions, so nothing is
shared between labels. The decoder begins with its start token; its states, which predict the K * L tokens, are the soft
attributes. Labels of unequal length are padded on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vidlex.model.text.llm import FrozenLLM, SharedPrompt
from vidlex.model.text.prompts import Prompt

MODEL_TYPES = ("t5", "mt5")


class FrozenEncoderDecoder(FrozenLLM):
    def _check_architecture(self) -> None:
        if self.model.config.model_type not in MODEL_TYPES:
            raise self._unsupported(f"it is not one of {', '.join(MODEL_TYPES)}")

    def label_ids(self, prompt: Prompt, name: str, num_decoded: int) -> list[int]:
        return [*super().label_ids(prompt, name, num_decoded), self.tokenizer.eos_token_id]

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        ids, mask = super().pad([row[::-1] for row in rows])
        return ids.flip(1), mask.flip(1)

    def prefill(self, prefixes: Tensor, shared_ids: Sequence[int]) -> SharedPrompt:
        # no pass: ``cache`` is the embedded beginning [N, 1 + M, d]
        x = self.embed_shared(prefixes, shared_ids)
        return SharedPrompt(x, len(prefixes), x.shape[1])

    def _start(
        self, shared: SharedPrompt, ids: Tensor, mask: Tensor, num_tokens: int
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        encoded = self._encode(shared, ids, mask)
        cache: Any = None

        def advance(x: Tensor) -> Tensor:
            nonlocal cache
            out = self.model.decoder(inputs_embeds=x[:, None], **encoded, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            h: Tensor = out.last_hidden_state[:, -1]
            return h

        return advance(self.embedding(self._start_ids(len(ids) * shared.num_prefixes))), advance

    def teacher_forced_states(self, shared: SharedPrompt, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        v, n, num_tokens = tokens.shape
        inputs = tokens.transpose(0, 1).reshape(n * v, num_tokens)[:, :-1]
        x = self.embedding(torch.cat((self._start_ids(n * v)[:, None], inputs), dim=1))
        h: Tensor = self.model.decoder(inputs_embeds=x, **self._encode(shared, ids, mask)).last_hidden_state
        return h.float().view(n, v, num_tokens, -1).transpose(0, 1)

    def _encode(self, shared: SharedPrompt, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        n, v = shared.num_prefixes, len(ids)
        x = torch.cat((shared.cache.repeat_interleave(v, dim=0), self.embedding(ids).repeat(n, 1, 1)), dim=1)
        all_mask = torch.cat((mask.new_ones(n * v, shared.length), mask.repeat(n, 1)), dim=1)
        h = self.model.encoder(inputs_embeds=x, attention_mask=all_mask).last_hidden_state
        return {"encoder_hidden_states": h, "encoder_attention_mask": all_mask}

    def _start_ids(self, num_rows: int) -> Tensor:
        return torch.full((num_rows,), self.model.config.decoder_start_token_id, device=self.device)

    def _logits(self, h: Tensor, used_words: Tensor | None) -> Tensor:
        scaled = h * self.model.model_dim**-0.5 if getattr(self.model.config, "scale_decoder_outputs", False) else h
        return super()._logits(scaled, used_words)
