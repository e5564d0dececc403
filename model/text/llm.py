"""A frozen causal language model that decodes soft attributes after learned prefixes.

The sequence of one label under one prefix is

    [ prefix | prompt before the label | label and prompt after it | decoded tokens ]
      1 vector        shared by all labels      one per label            K * L

The soft attributes are the last hidden states (after the final norm) of the K * L positions that *predict* the decoded
tokens: the last prompt position predicts the first token, the position of token i predicts token i + 1. The last
decoded token is never an input.

Keys and values of the first two parts are computed once per prefix and shared by all labels. Labels of unequal length
are padded on the left, between the shared part and the label, so that all rows decode at the same index. Padding is
masked and skipped by the position ids.

d is the width of a hidden state. A row is one label under one prefix: N * V rows, prefix-major.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidlex.model.classifier import LabelTextError
from vidlex.model.config import Feedback
from vidlex.model.text.fast_llm import FastLlama, can_be_fast
from vidlex.model.text.prompts import Prompt
from vidlex.model.weights.cache import WeightsError

_NEEDED_INPUTS = {"inputs_embeds", "position_ids", "past_key_values"}
_CACHE_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer"}
_CONTEXT_LIMITS = ("max_position_embeddings", "sliding_window", "attention_chunk_size")


@dataclass(frozen=True, eq=False)
class SharedPrompt:
    cache: Any
    num_prefixes: int
    length: int  # 1 + M

    def expand(self, num_labels: int) -> Any:  # transformers' cache with N * V rows
        expanded = copy.copy(self.cache)  # not a deep copy, which fails for tensors with a gradient
        expanded.layers = [copy.copy(layer) for layer in self.cache.layers]
        expanded.batch_repeat_interleave(num_labels)
        return expanded


@dataclass(frozen=True, eq=False)
class Decoded:
    states: Tensor  # [V, N, K * L, d], which predict each token
    tokens: Tensor  # [V, N, K * L] ids


class FrozenLLM:
    """A causal LM of transformers with its tokenizer; in evaluation mode, without gradient to its weights.

    Supports any architecture with a key-value cache that takes ``inputs_embeds`` and ``position_ids``; raises
    WeightsError for another one. ``folder``: where ``load_llm`` found it.
    """

    def __init__(self, model: Any, tokenizer: Any, folder: Path | None = None) -> None:
        model.requires_grad_(False).eval()
        self.model = model
        self.tokenizer = tokenizer
        self.folder = folder
        self._body = self.model.base_model
        self._check_architecture()
        self._head: Any = self.model.get_output_embeddings()
        self._fast: FastLlama | None = None
        self._shared_ids: dict[Prompt, list[int]] = {}
        num_ids = int(self._head.weight.shape[0])
        tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))][:num_ids]
        # some vocabularies have more rows than tokens (Qwen), or fewer
        special = {*(i for i in tokenizer.all_special_ids if i < num_ids), *range(len(tokens), num_ids)}
        self._special_ids = torch.tensor(sorted(special), dtype=torch.long)
        tokens += [""] * (num_ids - len(tokens))
        # Only tokens with ASCII letters count as words: byte-level vocabularies split letters of other scripts into
        # bytes, which may repeat. They spell a line break "Ċ" or "<0x0A>".
        words = [any(c.isascii() and c.isalpha() for c in token) and token[:3] != "<0x" for token in tokens]
        self._is_word = torch.tensor(words)
        breaks = [i for i, token in enumerate(tokens) if "Ċ" in token or "\n" in token or token == "<0x0A>"]
        self._special_and_break_ids = torch.tensor(sorted({*special, *breaks}), dtype=torch.long)

    def _check_architecture(self) -> None:
        missing = sorted(_NEEDED_INPUTS - set(inspect.signature(self._body.forward).parameters))
        if missing:
            raise self._unsupported(f"it takes no {' and no '.join(missing)}")
        if getattr(self.model.config.get_text_config(), "hidden_size_per_layer_input", None):
            raise self._unsupported("each layer reads token ids, and a prefix has none")

    def _unsupported(self, reason: str) -> WeightsError:
        return WeightsError(f"the language model {type(self.model).__name__} is not supported: {reason}")

    def optimize_for_inference(self) -> None:
        """Switch to ``FastLlama`` if it supports the model: equal up to rounding, but without gradient and bound to the
        current device. Irreversible."""
        if self._fast is not None or not can_be_fast(self.model):
            return
        self._fast = FastLlama(self.model)
        self._head = self._fast.head
        self.model.base_model.layers = nn.ModuleList()  # release the unpacked weights
        for parameter in self.model.parameters():  # the file stays memory-mapped while any tensor refers to it
            parameter.data = parameter.data.clone()

    @property
    def embedding(self) -> nn.Embedding:
        module: nn.Embedding = self.model.get_input_embeddings()
        return module

    @property
    def embedding_scale(self) -> float:  # by which the embedding module multiplies its weights (Gemma)
        return float(getattr(self.embedding, "scalar_embed_scale", 1.0))

    @property
    def width(self) -> int:
        return int(self.embedding.weight.shape[1])

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    # --- ids ---

    def token_ids(self, text: str) -> list[int]:
        # spelled-out control tokens ("<|im_end|>") are plain text
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    def shared_ids(self, prompt: Prompt) -> list[int]:
        if prompt not in self._shared_ids:
            self._shared_ids[prompt] = self._tokenize_shared(prompt)
        return self._shared_ids[prompt]

    def _tokenize_shared(self, prompt: Prompt) -> list[int]:
        ids = self.token_ids(prompt.before)
        with_special: list[int] = self.tokenizer(prompt.before).input_ids
        start = self.tokenizer.bos_token_id
        return [start, *ids] if start is not None and with_special[:1] == [start] else ids

    def label_ids(self, prompt: Prompt, name: str, num_decoded: int) -> list[int]:
        """Raises LabelTextError if the sequence exceeds the LLM's context, or its attention window: padding between
        the shared part and the label would shift the window."""
        ids = self.token_ids(prompt.label_text(name))
        config = self.model.config.get_text_config()
        limits = [getattr(config, name, None) for name in _CONTEXT_LIMITS]
        limit = min((limit for limit in limits if limit), default=None)
        needed = 1 + len(self.shared_ids(prompt)) + len(ids) + num_decoded
        if limit is not None and needed > limit:
            raise LabelTextError(f"the label is too long: its prompt takes {needed} tokens of the LLM's {limit}")
        return ids

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:  # ids [V, M] and mask, 0 at padding
        length = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, length - len(row) :] = torch.tensor(row)
            mask[i, length - len(row) :] = 1
        return ids.to(self.device), mask.to(self.device)

    # --- forward passes ---

    def prefill(self, prefixes: Tensor, shared_ids: Sequence[int]) -> SharedPrompt:
        """One pass over ``[prefix | shared ids]`` for prefixes [N, d], with gradient to them if enabled."""
        n, x = len(prefixes), self.embed_shared(prefixes, shared_ids)
        if self._fast is not None:
            self._check_no_gradient(x)
            return SharedPrompt(self._fast.prefill(x), n, x.shape[1])
        cache = self._body(inputs_embeds=x, use_cache=True).past_key_values
        if other := {type(layer).__name__ for layer in cache.layers} - _CACHE_LAYERS:
            # a recurrent state cannot skip the padding between the shared part and a label
            raise WeightsError(
                f"{type(self.model).__name__} is not supported: its cache has {' and '.join(sorted(other))}"
            )
        return SharedPrompt(cache, n, x.shape[1])

    def embed_shared(self, prefixes: Tensor, shared_ids: Sequence[int]) -> Tensor:  # [N, d] -> [N, 1 + M, d]
        words = self.embedding(torch.tensor([list(shared_ids)], device=self.device)).expand(len(prefixes), -1, -1)
        return torch.cat((prefixes[:, None].to(words.dtype), words), dim=1)

    def decode(
        self,
        shared: SharedPrompt,
        ids: Tensor,
        mask: Tensor,
        num_tokens: int,
        *,
        feedback: Feedback = "greedy",
        distinct: bool = False,
        with_last_token: bool = True,
    ) -> Decoded:
        """Decode K * L = ``num_tokens`` tokens per label under each prefix; ``ids`` and ``mask`` [V, M] from ``pad``.

        Runs step by step on the cache: under ``torch.no_grad`` the serving path, with gradient and ``feedback="soft"``
        the training path of soft feedback, whose memory grows with every step. ``distinct`` as in ``Prompt.distinct``.
        Without ``with_last_token`` only K * L - 1 tokens are returned; the states do not depend on the last one.
        """
        n, v = shared.num_prefixes, len(ids)
        h, advance = self._start(shared, ids, mask, num_tokens)  # [N * V, d]
        ids = ids.repeat(n, 1)  # [N * V, M]
        used_words = self._mask_non_words(ids) if distinct else None
        states, tokens = [h], []
        for step in range(num_tokens if with_last_token else num_tokens - 1):
            logits = self._logits(h, used_words)  # [N * V, vocabulary]
            tokens.append(logits.argmax(dim=1))
            if step == num_tokens - 1:
                break
            if used_words is not None:
                used_words = torch.cat((used_words, self._mask_non_words(tokens[-1][:, None])), dim=1)
            if feedback == "soft":
                x = logits.softmax(dim=1).to(self.dtype) @ self.embedding.weight * self.embedding_scale
            else:
                x = self.embedding(tokens[-1])
            h = advance(x)
            states.append(h)
        return Decoded(
            torch.stack(states, dim=1).float().view(n, v, num_tokens, -1).transpose(0, 1),
            torch.stack(tokens, dim=1).view(n, v, len(tokens)).transpose(0, 1) if tokens else ids.new_empty(v, n, 0),
        )

    def _start(
        self, shared: SharedPrompt, ids: Tensor, mask: Tensor, num_tokens: int
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The states that predict the first tokens [N * V, d], and the function from the embeddings of the tokens
        [N * V, d] to the states that predict the next ones."""
        cache = self._expand_cache(shared, len(ids), ids.shape[1] + num_tokens - 1)
        all_mask = mask.repeat(shared.num_prefixes, 1)  # [N * V, M]
        position = shared.length + all_mask.sum(dim=1, keepdim=True)  # [N * V, 1], of the next token

        def advance(x: Tensor) -> Tensor:
            nonlocal all_mask, position
            all_mask = torch.cat((all_mask, torch.ones_like(all_mask[:, :1])), dim=1)
            h = self._forward(cache, shared.length, x[:, None], all_mask, position)
            position = position + 1
            return h[:, -1]

        x = self.embedding(ids.repeat(shared.num_prefixes, 1))
        return self._read(cache, shared.length, x, all_mask)[:, -1], advance

    def teacher_forced_states(self, shared: SharedPrompt, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """The states of ``decode`` [V, N, K * L, d] in one pass over given tokens [V, N, K * L].

        In training the gradient reaches the prefixes through one parallel pass instead of K * L dependent steps.
        """
        v, n, num_tokens = tokens.shape
        inputs = tokens.transpose(0, 1).reshape(n * v, num_tokens)[:, :-1]  # [N * V, K * L - 1]
        all_ids = torch.cat((ids.repeat(n, 1), inputs), dim=1)  # [N * V, M + K * L - 1]
        all_mask = torch.cat((mask.repeat(n, 1), torch.ones_like(inputs)), dim=1)
        cache = self._expand_cache(shared, v, all_ids.shape[1])
        h = self._read(cache, shared.length, self.embedding(all_ids), all_mask)[:, -num_tokens:]
        return h.float().view(n, v, num_tokens, -1).transpose(0, 1)

    def text(self, tokens: Tensor) -> str:
        text: str = self.tokenizer.decode(tokens.tolist())
        return text

    def _mask_non_words(self, ids: Tensor) -> Tensor:
        is_word = self._is_word.to(ids.device)[ids]
        return torch.where(is_word, ids, self._special_and_break_ids.to(ids.device)[:1])  # an id that is never decoded

    def _logits(self, h: Tensor, used_words: Tensor | None) -> Tensor:  # [rows, d] -> [rows, vocabulary]
        logits: Tensor = self._head(h)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return self._mask_logits(logits, used_words)

    def mask_logits(self, logits: Tensor, ids: Tensor, *, distinct: bool) -> Tensor:
        """[rows, vocabulary] with -inf for tokens that must not follow ``ids`` [rows, any]: the label's and those
        decoded before.
        """
        return self._mask_logits(logits, self._mask_non_words(ids) if distinct else None)

    def _mask_logits(self, logits: Tensor, used_words: Tensor | None) -> Tensor:
        # control tokens are masked so that decoding never ends early
        excluded = self._special_ids if used_words is None else self._special_and_break_ids
        logits = logits.index_fill(1, excluded.to(logits.device), float("-inf"))
        return logits if used_words is None else logits.scatter_(1, used_words, float("-inf"))

    def _expand_cache(self, shared: SharedPrompt, num_labels: int, length: int) -> Any:
        if self._fast is not None:
            return self._fast.expand(shared.cache, num_labels, length)
        return shared.expand(num_labels)

    def _read(self, cache: Any, offset: int, x: Tensor, mask: Tensor) -> Tensor:  # [rows, M, d]
        position = offset + (mask.cumsum(dim=1) - 1).clamp_min(0)
        return self._forward(cache, offset, x, mask, position)

    def _forward(self, cache: Any, offset: int, x: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        has_padding = not bool(mask.all())  # without padding the model needs no mask, which is faster
        if self._fast is not None:
            self._check_no_gradient(x)
            start = mask.shape[1] - x.shape[1]
            attention = _attention_mask(mask, start) if has_padding or x.shape[1] > 1 else None
            return self._fast.forward(cache, x, position, start, attention)
        full_mask = torch.cat((mask.new_ones(len(mask), offset), mask), dim=1) if has_padding else None
        out = self._body(
            inputs_embeds=x, attention_mask=full_mask, position_ids=position, past_key_values=cache, use_cache=True
        )
        h: Tensor = out.last_hidden_state
        return h

    @staticmethod
    def _check_no_gradient(x: Tensor) -> None:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("a language model optimized for inference has no gradient")


def _attention_mask(mask: Tensor, start: int) -> Tensor:
    """Padding mask [rows, start + M] -> causal mask [rows, M, start + M] of the last M positions, true to attend.

    Every position attends to itself, padding too: a softmax over nothing is NaN.
    """
    length = mask.shape[1] - start
    causal = torch.ones(length, mask.shape[1], dtype=torch.bool, device=mask.device).tril(start)
    itself = torch.eye(length, mask.shape[1], dtype=torch.bool, device=mask.device).roll(start, dims=1)
    return (mask.bool()[:, None] & causal) | itself
