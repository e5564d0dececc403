"""CLIP's text tower fed with embeddings: label tokens with soft tokens in front of them, or behind.

open_clip's ``encode_text`` takes ids only. Here the sequence is ``[SOS, soft tokens, label tokens, EOT, padding]``;
a tower without a start token (SigLIP) has the soft tokens first. A causal tower reads the label as it would without
soft tokens where these stand behind it. Soft tokens get position embeddings like words, and the pooled position is
found from the ids, never from the embeddings.
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

_COUNTING_LENGTH = 1024
"""Ids per text when tokens are counted. Tokenizers cut silently at their context; at this length the excess shows."""

_KNOWN_TEXTS = 1 << 15
"""Texts whose ids are kept: training reads the same names step after step, and the tokenizer is plain Python."""


class ClipText:
    """Text features of an open_clip ``CLIP`` or ``CustomTextCLIP``, from names and soft tokens.

    Not a module: it refers to the model's own tower and owns no weights. Raises ValueError for a text tower that
    cannot be fed with embeddings (a Hugging Face encoder, a class-token tower such as CoCa's).
    """

    def __init__(self, clip: nn.Module, tokenizer: Any) -> None:
        if isinstance(clip, open_clip.CLIP):
            tower: Any = clip  # its text attributes are at the top level
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
        """W, the width of a token embedding."""
        self._learn_layout()
        self._row_of = lru_cache(_KNOWN_TEXTS)(self._row)

    def _learn_layout(self) -> None:
        """What the tokenizer puts around a text. It is asked, because open_clip's tokenizers differ in all of it."""
        blank, one, two = self._tokenize_long(["", "cat", "dog"])
        runs = [i for i in range(1, len(blank)) if blank[i] != blank[i - 1]] + [len(blank)]
        starts = [0, *runs[:-1]]
        start, end = max(zip(starts, runs, strict=True), key=lambda run: run[1] - run[0])
        self._pad_id = blank[start]
        self._tail = blank[end:]  # a class token at the very end of the context, in some tokenizers
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
        # A tower may end its text with the id that also pads: then no end is seen, but one such position is needed.
        self._num_hidden_end = 0 if trail else 1
        inner = getattr(self._tokenizer, "tokenizer", None)  # Hugging Face tokenizers are wrapped
        special = set(getattr(self._tokenizer, "all_special_ids", None) or getattr(inner, "all_special_ids", []))
        special -= {getattr(inner, "unk_token_id", None)}
        self._reserved = special | set(one[:shared]) | set(one[len(one) - trail :]) | set(self._tail)

    def _tokenize_long(self, texts: Sequence[str]) -> list[list[int]]:
        length = max(_COUNTING_LENGTH, 2 * self.context_length)
        ids: list[list[int]] = self._tokenizer(list(texts), context_length=length).tolist()
        return ids

    def _content(self, row: list[int]) -> list[int]:
        """A long row of ids without padding and tail."""
        end = len(row) - len(self._tail)
        while end and row[end - 1] == self._pad_id:
            end -= 1
        return row[:end]

    # --- modules and parameters, looked up at each call because a move to a device may replace them ---

    @property
    def device(self) -> torch.device:
        device: torch.device = self._tower.positional_embedding.device
        return device

    @property
    def token_embedding(self) -> Tensor:
        """[vocabulary, W]."""
        weight: Tensor = self._tower.token_embedding.weight
        return weight

    @property
    def dim(self) -> int:
        """D, the length of a text feature."""
        projection = self._tower.text_projection
        if projection is None:
            return self.width
        return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])

    def freeze(self) -> None:
        """No gradient to the text tower, and evaluation mode."""
        tower = self._tower
        for part in (tower.token_embedding, tower.transformer, tower.ln_final):
            part.requires_grad_(False).eval()
        tower.positional_embedding.requires_grad_(False)
        if tower.text_projection is not None:
            tower.text_projection.requires_grad_(False)

    # --- ids ---

    def ids(self, names: Sequence[str], num_soft: int = 0) -> Tensor:
        """[V, context] ids with ``num_soft`` placeholders in front of each label. Raises LabelTextError."""
        return self._ids(names, num_soft, behind=False)[0]

    def _ids(self, names: Sequence[str], num_soft: int, *, behind: bool) -> tuple[Tensor, Tensor]:
        """[V, context] ids, and [V] the position of each row's first placeholder.

        Raises LabelTextError for a label that does not fit whole, is empty to the tokenizer or holds reserved tokens.
        """
        if not names:
            nothing = torch.zeros(0, self.context_length, dtype=torch.long, device=self.device)
            return nothing, nothing[:, 0]
        rows, starts = zip(*(self._row_of(name, num_soft, behind) for name in names), strict=True)
        return torch.stack(rows).to(self.device), torch.tensor(starts, device=self.device)

    def _row(self, name: str, num_soft: int, behind: bool) -> tuple[Tensor, int]:
        """[context] ids of one label on the CPU, and the position of the first placeholder."""
        content = self._content(self._tokenize_long([name])[0])
        end = len(content) - self._num_trail
        label = content[self._num_lead : end]
        if not label:
            raise LabelTextError("nothing of the label is left after CLIP's text cleaning")
        if self._reserved.intersection(label):
            raise LabelTextError("the label holds a token that is reserved by CLIP's tokenizer")
        room = self.context_length - len(self._tail) - self._num_hidden_end
        used = len(content) + num_soft
        if used > room:
            most = room - (used - len(label))
            raise LabelTextError(f"the label is too long: {len(label)} tokens for CLIP, at most {most} fit")
        start = end if behind else self._num_lead
        row = [*content[:start], *[self._placeholder] * num_soft, *content[start:]]
        row += [self._pad_id] * (self.context_length - len(self._tail) - len(row))
        return torch.tensor([*row, *self._tail]), start

    def check(self, name: str, num_soft: int = 0) -> None:
        """Raise LabelTextError when ``name`` cannot be encoded whole beside ``num_soft`` soft tokens."""
        self.ids([name], num_soft)

    def embed_words(self, text: str) -> Tensor:
        """[n, W] token embeddings of a text alone, without what the tokenizer puts around it."""
        content = self._content(self._tokenize_long([text])[0])
        words = content[self._num_lead : len(content) - self._num_trail]
        embeddings: Tensor = self._tower.token_embedding(torch.tensor(words, device=self.device))
        return embeddings

    # --- features ---

    def encode(self, names: Sequence[str]) -> Tensor:
        """[V, D] text features of the plain names, not normalised."""
        ids = self.ids(names)
        return self.encode_embeddings(self._tower.token_embedding(ids), ids)

    def encode_with_soft(self, names: Sequence[str], soft: Tensor, *, behind: bool = False) -> Tensor:
        """[V, S, D] text features, not normalised: S soft prompts per name, ``soft`` [V, S, L, W], each before it, or
        ``behind`` it."""
        v, s, length, width = soft.shape
        if v != len(names) or width != self.width:
            raise ValueError(f"soft tokens {list(soft.shape)} do not fit {len(names)} names and width {self.width}")
        ids, start = self._ids(names, length, behind=behind)
        ids = ids[:, : self._needed_length(ids)]
        words = self._tower.token_embedding(ids)[:, None].expand(-1, s, -1, -1)
        place = torch.arange(ids.shape[1], device=ids.device) - start[:, None]  # [V, T], 0 at the first soft token
        is_soft = ((place >= 0) & (place < length))[:, None, :, None].expand_as(words)
        x = words.masked_scatter(is_soft, soft.to(words.dtype))  # [V, S, T, W]
        features = self.encode_embeddings(x.flatten(0, 1), ids.repeat_interleave(s, dim=0))
        return features.view(v, s, -1)

    def encode_embeddings(self, x: Tensor, ids: Tensor) -> Tensor:
        """[n, T, W] token embeddings and their ids [n, T] -> [n, D] features, not normalised, float32.

        Positions after the pooled one change nothing in a causal tower and are cut off; a bidirectional tower reads
        its padding too and needs the whole context.
        """
        tower = self._tower
        length = self._needed_length(ids)
        x, ids = x[:, :length], ids[:, :length]
        dtype = tower.transformer.get_cast_dtype()
        x = x.to(dtype) + tower.positional_embedding[:length].to(dtype)
        mask = tower.attn_mask
        x = tower.transformer(x, attn_mask=None if mask is None else mask[:length, :length])
        x = tower.ln_final(x)
        x = text_global_pool(x, ids, self.pool_type, eos_token_id=self._eos_id)
        projection = tower.text_projection
        if isinstance(projection, nn.Linear):
            x = projection(x)
        elif projection is not None:
            x = x @ projection
        return x.float()

    def _needed_length(self, ids: Tensor) -> int:
        """Positions that can influence the pooled one."""
        if self._tower.attn_mask is None or self.pool_type == "last" or not len(ids):
            return int(ids.shape[1])
        if self.pool_type == "first":
            return 1
        marks = ids if self.pool_type == "argmax" else torch.eq(ids, -1 if self._eos_id is None else self._eos_id).int()
        end = marks.argmax(dim=1)
        return int(end.max()) + 1
