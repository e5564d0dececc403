"""CLIP's text tower with embeddings as input: label tokens with soft tokens before or after them.

The sequence is ``[SOS, soft tokens, label tokens, EOT, padding]``, without SOS for a tower that has none (SigLIP). With
soft tokens after the label, a causal tower reads the label as without them. Soft tokens get position embeddings like
words. The pooled position is determined from the ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import open_clip
import torch
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

from vidlex.model.classifier import LabelTextError

_COUNTING_LENGTH = 1024  # context length for counting tokens: tokenizers truncate silently at theirs

_ID_CACHE_SIZE = 1 << 15  # cached texts: training reads the same names in every step, and the tokenizer is plain Python


class ClipText:
    """Text features of an open_clip ``CLIP`` or ``CustomTextCLIP``, from names and soft tokens.

    Not a module: it owns no weights. Raises ValueError for a text tower that does not take embeddings (a Hugging Face
    encoder, a class-token tower such as CoCa's).
    """

    def __init__(self, clip: nn.Module, tokenizer: Any) -> None:
        if isinstance(clip, open_clip.CLIP):
            tower: Any = clip  # has the text tower's attributes at its top level
            pool_type, eos_id = clip.text_pool_type, clip.text_eos_id
        else:
            tower = getattr(clip, "text", None)
            if not isinstance(tower, TextTransformer):
                raise ValueError(f"the text tower {type(tower).__name__} of {type(clip).__name__} is not supported")
            if tower.cls_emb is not None or tower.use_pad_mask:
                raise ValueError("a text tower with a class token or a padding mask is not supported")
            pool_type, eos_id = tower.pool_type, tower.eos_id
        if pool_type == "none":
            raise ValueError("a text tower without pooling is not supported")
        self.clip, self._tower, self._tokenizer = clip, tower, tokenizer
        self.pool_type: str = pool_type
        self._eos_id: int | None = eos_id
        self.context_length = int(tower.context_length)
        self.width = int(tower.token_embedding.weight.shape[1])
        self._detect_layout()
        self._cached_row = lru_cache(_ID_CACHE_SIZE)(self._row)

    def _detect_layout(self) -> None:
        """Find the special tokens around a text from examples, because open_clip's tokenizers differ."""
        blank, one, two = self._tokenize_long(["", "cat", "dog"])
        runs = [i for i in range(1, len(blank)) if blank[i] != blank[i - 1]] + [len(blank)]
        starts = [0, *runs[:-1]]
        start, end = max(zip(starts, runs, strict=True), key=lambda run: run[1] - run[0])
        self._pad_id = blank[start]
        self._tail = blank[end:]  # some tokenizers put a class token at the end of the context
        one, two = self._content(one), self._content(two)
        shared = 0
        while one[shared] == two[shared]:
            shared += 1
        self._num_lead = shared
        trail = 0
        while one[-1 - trail] == two[-1 - trail]:
            trail += 1
        self._num_trail = trail
        self._placeholder = one[shared]
        # If the end token equals the padding, no end token is detected, but one position is still needed for it.
        self._num_hidden_end = 0 if trail else 1
        inner = getattr(self._tokenizer, "tokenizer", None)  # open_clip wraps Hugging Face tokenizers
        special = set(getattr(self._tokenizer, "all_special_ids", None) or getattr(inner, "all_special_ids", []))
        special -= {getattr(inner, "unk_token_id", None)}
        self._reserved = special | set(one[:shared]) | set(one[len(one) - trail :]) | set(self._tail)

    def _tokenize_long(self, texts: Sequence[str]) -> list[list[int]]:
        length = max(_COUNTING_LENGTH, 2 * self.context_length)
        ids: list[list[int]] = self._tokenizer(list(texts), context_length=length).tolist()
        return ids

    def _content(self, row: list[int]) -> list[int]:
        end = len(row) - len(self._tail)
        while end and row[end - 1] == self._pad_id:
            end -= 1
        return row[:end]

    # --- modules and parameters; looked up at each call, because a move to a device may replace them ---

    @property
    def device(self) -> torch.device:
        device: torch.device = self._tower.positional_embedding.device
        return device

    @property
    def token_embedding(self) -> Tensor:  # [vocabulary, width]
        weight: Tensor = self._tower.token_embedding.weight
        return weight

    @property
    def dim(self) -> int:
        projection = self._tower.text_projection
        if projection is None:
            return self.width
        return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])

    def freeze(self) -> None:
        tower = self._tower
        for part in (tower.token_embedding, tower.transformer, tower.ln_final):
            part.requires_grad_(False).eval()
        tower.positional_embedding.requires_grad_(False)
        if tower.text_projection is not None:
            tower.text_projection.requires_grad_(False)

    # --- ids ---

    def ids(self, names: Sequence[str], num_soft: int = 0) -> Tensor:  # [V, context]
        return self._ids(names, num_soft, after=False)[0]

    def _ids(self, names: Sequence[str], num_soft: int, *, after: bool) -> tuple[Tensor, Tensor]:
        """[V, context] ids, and [V] positions of each row's first placeholder. Raises LabelTextError."""
        if not names:
            empty = torch.zeros(0, self.context_length, dtype=torch.long, device=self.device)
            return empty, empty[:, 0]
        rows, starts = zip(*(self._cached_row(name, num_soft, after) for name in names), strict=True)
        return torch.stack(rows).to(self.device), torch.tensor(starts, device=self.device)

    def _row(self, name: str, num_soft: int, after: bool) -> tuple[Tensor, int]:  # [context], on the CPU
        content = self._content(self._tokenize_long([name])[0])
        end = len(content) - self._num_trail
        label = content[self._num_lead : end]
        if not label:
            raise LabelTextError("the label is empty after CLIP's text cleaning")
        if self._reserved.intersection(label):
            raise LabelTextError("the label contains a token that is reserved by CLIP's tokenizer")
        max_used = self.context_length - len(self._tail) - self._num_hidden_end
        used = len(content) + num_soft
        if used > max_used:
            max_tokens = max_used - (used - len(label))
            raise LabelTextError(f"the label is too long: {len(label)} tokens for CLIP, at most {max_tokens} fit")
        start = end if after else self._num_lead
        row = [*content[:start], *[self._placeholder] * num_soft, *content[start:]]
        row += [self._pad_id] * (self.context_length - len(self._tail) - len(row))
        return torch.tensor([*row, *self._tail]), start

    def check(self, name: str, num_soft: int = 0) -> None:
        """Raises LabelTextError for a label that does not fit, has no tokens or contains reserved tokens."""
        self.ids([name], num_soft)

    def num_tokens(self, name: str) -> int:
        return len(self._content(self._tokenize_long([name])[0]))

    def embed_words(self, text: str) -> Tensor:  # [M, width], without special tokens
        content = self._content(self._tokenize_long([text])[0])
        words = content[self._num_lead : len(content) - self._num_trail]
        embeddings: Tensor = self._tower.token_embedding(torch.tensor(words, device=self.device))
        return embeddings

    # --- features ---

    def encode(self, names: Sequence[str]) -> Tensor:  # [V, D], not normalised
        ids = self.ids(names)
        return self.encode_embeddings(self._tower.token_embedding(ids), ids)

    def encode_with_soft(self, names: Sequence[str], soft: Tensor, *, after: bool = False) -> Tensor:
        """N * K soft prompts per name: ``soft`` [V, N * K, L, width] -> [V, N * K, D], not normalised."""
        v, s, length, width = soft.shape
        if v != len(names) or width != self.width:
            raise ValueError(f"soft tokens {list(soft.shape)} do not fit {len(names)} names and width {self.width}")
        ids, start = self._ids(names, length, after=after)
        ids = ids[:, : self._num_used_positions(ids)]  # [V, n]
        words = self._tower.token_embedding(ids)[:, None].expand(-1, s, -1, -1)  # [V, N * K, n, width]
        offset = torch.arange(ids.shape[1], device=ids.device) - start[:, None]  # [V, n], 0 at the first soft token
        is_soft = ((offset >= 0) & (offset < length))[:, None, :, None].expand_as(words)
        x = words.masked_scatter(is_soft, soft.to(words.dtype))  # [V, N * K, n, width]
        features = self.encode_embeddings(x.flatten(0, 1), ids.repeat_interleave(s, dim=0))  # [V * N * K, D]
        return features.view(v, s, -1)

    def encode_embeddings(self, x: Tensor, ids: Tensor) -> Tensor:
        """[V, n, width] token embeddings and their ids [V, n] -> [V, D] float32 features, not normalised.

        In a causal tower, positions after the pooled one have no effect and are dropped.
        """
        tower = self._tower
        length = self._num_used_positions(ids)
        x, ids = x[:, :length], ids[:, :length]
        dtype = tower.transformer.get_cast_dtype()
        x = x.to(dtype) + tower.positional_embedding[:length].to(dtype)
        mask = tower.attn_mask
        x = tower.transformer(x, attn_mask=None if mask is None else mask[:length, :length])
        x = tower.ln_final(x)
        x = text_global_pool(x, ids, self.pool_type, eos_token_id=self._eos_id)  # [V, width]
        projection = tower.text_projection
        if isinstance(projection, nn.Linear):
            x = projection(x)
        elif projection is not None:
            x = x @ projection
        return x.float()

    def _num_used_positions(self, ids: Tensor) -> int:
        if self._tower.attn_mask is None or self.pool_type == "last" or not len(ids):
            return int(ids.shape[1])
        if self.pool_type == "first":
            return 1
        if self.pool_type == "argmax":
            end = ids.argmax(dim=1)
        else:
            end = torch.eq(ids, -1 if self._eos_id is None else self._eos_id).int().argmax(dim=1)
        return int(end.max()) + 1
