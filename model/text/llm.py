"""A frozen causal language model that writes soft attributes behind learned prefixes.

The sequence of one label under one prefix is

    [ prefix | prompt before the label | label and prompt after it | decoded tokens ]
      1 vector        shared by all labels      paid per label           K * L

and what is taken are the last hidden states (after the model's final norm) of the K * L positions that *predict* the
decoded tokens: the last prompt position predicts the first token, the position of token i predicts token i + 1. These
states are what the model is about to say, before it is rounded to a word; the first is the one that has read all of
the prompt; and the last decoded token never needs to be read back.

The keys and values of the first two parts are computed once per prefix and shared by all labels. Labels of unequal
length are padded on the left, between the shared part and the label, so that all rows decode in the same column;
padding is masked and the position numbers skip it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidlex.model.classifier import LabelTextError
from vidlex.model.config import Feedback
from vidlex.model.text.fast_llm import FastLlama, can_be_fast
from vidlex.model.text.prompts import Prompt


@dataclass(frozen=True, eq=False)
class SharedPrompt:
    """Keys and values of ``[prefix | prompt before the label]`` for N prefixes; never changed once made."""

    cache: Any
    num_prefixes: int
    length: int
    """Positions in the cache."""

    def expand(self, num_labels: int) -> Any:
        """transformers' cache of N * V rows (prefix-major), to be grown by decoding."""
        # A deep copy refuses tensors that carry a gradient; those of a training step are made anew each time anyway.
        fresh = copy.copy(self.cache)
        fresh.layers = [copy.copy(layer) for layer in self.cache.layers]
        fresh.batch_repeat_interleave(num_labels)
        return fresh


@dataclass(frozen=True, eq=False)
class Decoded:
    """What was written for V labels under N prefixes."""

    states: Tensor
    """[V, N, K * L, d]: the states that predict each token."""
    tokens: Tensor
    """[V, N, K * L] ids, the likeliest at each step."""


class FrozenLLM:
    """A causal LM of transformers with its tokenizer; evaluation mode, no gradient to its weights.

    Any architecture with a key-value cache that takes ``inputs_embeds`` and ``position_ids`` will do.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        model.requires_grad_(False).eval()
        self.model = model
        self.tokenizer = tokenizer
        self._body = self.model.base_model
        self._head: Any = self.model.get_output_embeddings()
        self._fast: FastLlama | None = None
        special = sorted({i for i in tokenizer.all_special_ids if i < self._head.weight.shape[0]})
        self._never = torch.tensor(special, dtype=torch.long)
        tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
        # Vocabularies of bytes spell a line break "Ċ" or "<0x0A>", and other scripts in pieces of letters: what may be
        # written once only are tokens with ASCII letters, a piece of another script may come again.
        words = [any(c.isascii() and c.isalpha() for c in token) and token[:3] != "<0x" for token in tokens]
        self._is_word = torch.tensor(words)
        breaks = [i for i, token in enumerate(tokens) if "Ċ" in token or "\n" in token or token == "<0x0A>"]
        self._never_on_a_line = torch.tensor(sorted({*special, *breaks}), dtype=torch.long)

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> FrozenLLM:
        """From a local folder in the hub's layout. bfloat16 is for GPUs; a CPU is slower in it."""
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it would run through the service's log at every start
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return cls(model.to(device), tokenizer)

    def quicken(self) -> None:
        """From now on only serve, on this device: the same numbers up to rounding in less time, no gradient any more.

        Does nothing for a model that `vidlex.model.text.fast_llm` does not know its way around.
        """
        if self._fast is not None or not can_be_fast(self.model):
            return
        self._fast = FastLlama(self.model)
        self._head = self._fast.head
        self.model.base_model.layers = nn.ModuleList()  # one copy of the weights is enough
        for left in self.model.parameters():  # of the file's memory map, which as a whole stays while any part is used
            left.data = left.data.clone()

    @property
    def embedding(self) -> nn.Embedding:
        """Token ids to what the model reads: [...] -> [..., d]."""
        module: nn.Embedding = self.model.get_input_embeddings()
        return module

    @property
    def width(self) -> int:
        """d, the width of an embedding and of a hidden state."""
        return int(self.embedding.weight.shape[1])

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    # --- ids ---

    def token_ids(self, text: str) -> list[int]:
        """Plain ids of a text. One that spells a control token ("<|im_end|>") is text like any other."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    def shared_ids(self, prompt: Prompt) -> list[int]:
        """The prompt before the label, behind a start token where the tokenizer sets one."""
        ids = self.token_ids(prompt.before)
        with_special: list[int] = self.tokenizer(prompt.before).input_ids
        start = self.tokenizer.bos_token_id
        return [start, *ids] if start is not None and with_special[:1] == [start] else ids

    def label_ids(self, prompt: Prompt, name: str, num_decoded: int) -> list[int]:
        """The part that is paid per label. Raises LabelTextError when the model's context cannot hold it all."""
        ids = self.token_ids(prompt.label_text(name))
        limit = getattr(self.model.config, "max_position_embeddings", None)
        needed = 1 + len(self.shared_ids(prompt)) + len(ids) + num_decoded
        if limit is not None and needed > limit:
            raise LabelTextError(f"the label is too long: its prompt takes {needed} tokens of the LLM's {limit}")
        return ids

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of ids padded on the left: ids [V, M] and mask [V, M], 1 where an id is real."""
        length = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, length - len(row) :] = torch.tensor(row)
            mask[i, length - len(row) :] = 1
        return ids.to(self.device), mask.to(self.device)

    # --- forward passes ---

    def share(self, prefixes: Tensor, shared_ids: Sequence[int]) -> SharedPrompt:
        """One pass over ``[prefix | shared ids]`` for prefixes [N, d], with gradient to them where it is enabled."""
        n = len(prefixes)
        words = self.embedding(torch.tensor([list(shared_ids)], device=self.device)).expand(n, -1, -1)
        x = torch.cat((prefixes[:, None].to(words.dtype), words), dim=1)  # [N, 1 + M, d]
        if self._fast is not None:
            self._refuse_gradient(x)
            return SharedPrompt(self._fast.share(x), n, x.shape[1])
        out = self._body(inputs_embeds=x, use_cache=True)
        return SharedPrompt(out.past_key_values, n, x.shape[1])

    def decode(
        self,
        shared: SharedPrompt,
        ids: Tensor,
        mask: Tensor,
        num_tokens: int,
        *,
        feedback: Feedback = "greedy",
        distinct: bool = False,
        write_last: bool = True,
    ) -> Decoded:
        """Write ``num_tokens`` tokens for each label (``ids``, ``mask`` [V, M] from ``pad``) under each prefix.

        Runs step by step on the cache. Under ``torch.no_grad`` this is the serving path. With gradient enabled and
        ``feedback="soft"`` it is the training path of soft feedback, whose memory grows with every step.
        ``distinct`` as in ``Prompt.distinct``. Without ``write_last`` the last token is not chosen, which no state
        needs: K * L - 1 tokens.
        """
        n, v = shared.num_prefixes, len(ids)
        cache = self._room(shared, v, ids.shape[1] + num_tokens - 1)
        ids, all_mask = ids.repeat(n, 1), mask.repeat(n, 1)
        lengths = all_mask.sum(dim=1)
        h = self._read(cache, shared.length, self.embedding(ids), all_mask)[:, -1]  # [N * V, d]
        written = self._words(ids) if distinct else None
        states, tokens = [h], []
        for step in range(num_tokens if write_last else num_tokens - 1):
            logits = self._logits(h, written)
            tokens.append(logits.argmax(dim=1))
            if step == num_tokens - 1:
                break
            if written is not None:
                written = torch.cat((written, self._words(tokens[-1][:, None])), dim=1)
            if feedback == "soft":
                x = logits.softmax(dim=1).to(self.dtype) @ self.embedding.weight
            else:
                x = self.embedding(tokens[-1])
            all_mask = torch.cat((all_mask, torch.ones_like(all_mask[:, :1])), dim=1)
            position = (shared.length + lengths + step)[:, None]
            h = self._forward(cache, shared.length, x[:, None], all_mask, position)[:, -1]
            states.append(h)
        return Decoded(
            torch.stack(states, dim=1).float().view(n, v, num_tokens, -1).transpose(0, 1),
            torch.stack(tokens, dim=1).view(n, v, len(tokens)).transpose(0, 1) if tokens else ids.new_empty(v, n, 0),
        )

    def reread(self, shared: SharedPrompt, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """The states of ``decode`` in one pass over given tokens [V, N, K * L] (teacher forcing): [V, N, K * L, d].

        The way the gradient takes to the prefixes: one parallel pass, not K * L dependent steps.
        """
        v, n, num_tokens = tokens.shape
        flat = tokens.transpose(0, 1).reshape(n * v, num_tokens)[:, :-1]
        all_ids = torch.cat((ids.repeat(n, 1), flat), dim=1)
        all_mask = torch.cat((mask.repeat(n, 1), torch.ones_like(flat)), dim=1)
        cache = self._room(shared, v, all_ids.shape[1])
        h = self._read(cache, shared.length, self.embedding(all_ids), all_mask)[:, -num_tokens:]
        return h.float().view(n, v, num_tokens, -1).transpose(0, 1)

    def text(self, tokens: Tensor) -> str:
        """Ids [n] to text."""
        text: str = self.tokenizer.decode(tokens.tolist())
        return text

    def _words(self, ids: Tensor) -> Tensor:
        """``ids`` with everything that is no word (commas, padding) replaced by a token that is never written."""
        is_word = self._is_word.to(ids.device)[ids]
        return torch.where(is_word, ids, self._never_on_a_line.to(ids.device)[:1])

    def _logits(self, h: Tensor, written: Tensor | None) -> Tensor:
        """[n, d] -> [n, vocabulary]; control tokens are impossible, so that writing never ends early.

        Neither are the tokens ``written`` [n, any] nor line breaks, when it is given.
        """
        logits: Tensor = self._head(h)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return self._allowed(logits, written)

    def allowed(self, logits: Tensor, ids: Tensor, *, distinct: bool) -> Tensor:
        """Logits [n, vocabulary] with what may not follow ``ids`` [n, any] (label and tokens so far) impossible."""
        return self._allowed(logits, self._words(ids) if distinct else None)

    def _allowed(self, logits: Tensor, written: Tensor | None) -> Tensor:
        never = self._never if written is None else self._never_on_a_line
        logits = logits.index_fill(1, never.to(logits.device), float("-inf"))
        return logits if written is None else logits.scatter_(1, written, float("-inf"))

    def _room(self, shared: SharedPrompt, num_labels: int, length: int) -> Any:
        """A cache for ``length`` positions of each label under each prefix behind the shared part."""
        if self._fast is not None:
            return self._fast.expand(shared.cache, num_labels, length)
        return shared.expand(num_labels)

    def _read(self, cache: Any, offset: int, x: Tensor, mask: Tensor) -> Tensor:
        """Left-padded rows behind the shared part: [n, M, d] -> [n, M, d]."""
        position = offset + (mask.cumsum(dim=1) - 1).clamp_min(0)
        return self._forward(cache, offset, x, mask, position)

    def _forward(self, cache: Any, offset: int, x: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        """``mask`` covers what follows the shared part; without padding no mask is passed, which is faster."""
        padded = not bool(mask.all())
        if self._fast is not None:
            self._refuse_gradient(x)
            start = mask.shape[1] - x.shape[1]
            seen = _seen(mask, start) if padded or x.shape[1] > 1 else None
            return self._fast.forward(cache, x, position, start, seen)
        whole = torch.cat((mask.new_ones(len(mask), offset), mask), dim=1) if padded else None
        out = self._body(
            inputs_embeds=x, attention_mask=whole, position_ids=position, past_key_values=cache, use_cache=True
        )
        h: Tensor = out.last_hidden_state
        return h

    @staticmethod
    def _refuse_gradient(x: Tensor) -> None:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("a language model that was made to serve fast gives no gradient")


def _seen(mask: Tensor, start: int) -> Tensor:
    """[n, start + T] what is real -> [n, T, start + T] what each of the last T positions may look at.

    Each sees itself even where it is padding: a softmax needs something to look at.
    """
    length = mask.shape[1] - start
    causal = torch.ones(length, mask.shape[1], dtype=torch.bool, device=mask.device).tril(start)
    itself = torch.eye(length, mask.shape[1], dtype=torch.bool, device=mask.device).roll(start, dims=1)
    return (mask.bool()[:, None] & causal) | itself
