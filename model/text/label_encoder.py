"""The label encoder of the paper (section 3.1): label names to points in CLIP's space, by way of an LLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.classifier import LabelDescription
from vidlex.model.config import LabelEncoderConfig
from vidlex.model.text.clip_text import ClipText
from vidlex.model.text.llm import Decoded, FrozenLLM, SharedPrompt
from vidlex.model.text.prompting_transformer import PromptingTransformer
from vidlex.model.text.prompts import get_prompt

MAX_ROWS_CPU = 192
MAX_ROWS_GPU = 2048
"""Sequences (labels times prefixes) that go through the LLM at once: bounds memory; larger gains no speed."""

AGREEMENT = 0.7
"""Cosine of a label's feature and CLIP's reading of its name above which CLIP is said to know the label."""

_START_WORDS = ("objects", "actions", "scene", "motion", "colors", "shape", "people", "place")


class LabelEncoder(nn.Module):
    """N learned prefixes, a frozen LLM, the prompting transformer and CLIP's frozen text tower.

    The module's parameters are the learned ones alone, and so is its ``state_dict``. LLM and CLIP are frozen and not
    registered, but ``to(device)`` moves them along. Names are taken as they are; LabelTextError is raised for a name
    that cannot be read whole.
    """

    state_mean: Tensor
    state_std: Tensor

    def __init__(self, llm: FrozenLLM, clip_text: ClipText, config: LabelEncoderConfig) -> None:
        super().__init__()
        clip_text.freeze()
        self.config = config
        self.prompt = get_prompt(config.prompt_version)
        # Kept out of the module tree: neither parameters() nor a state file shall ever hold frozen weights.
        self.__dict__["llm"], self.__dict__["clip_text"] = llm, clip_text
        self.llm: FrozenLLM
        self.clip_text: ClipText
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.prefixes = nn.Parameter(_start_prefixes(llm, config.num_prefixes))
            self.prompting = PromptingTransformer(
                llm.width,
                clip_text.width,
                config.tokens_per_attribute,
                width=config.prompting_width,
                layers=config.prompting_layers,
                heads=config.prompting_heads,
                token_norm=float(clip_text.token_embedding.detach().float().norm(dim=1).mean()),
            )
        shape = (config.num_prefixes, config.num_attributes, config.tokens_per_attribute, llm.width)
        self.register_buffer("state_mean", torch.zeros(shape))
        self.register_buffer("state_std", torch.ones(llm.width))
        self._shared: tuple[Tensor, SharedPrompt] | None = None
        self._shared_ids = llm.shared_ids(self.prompt)
        super().to(llm.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LabelEncoder:
        """``to(device)`` and its like: the frozen parts go along."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.llm.model._apply(fn)
        self.clip_text.clip._apply(fn)  # type: ignore[no-untyped-call]
        self._shared = None
        return self

    def quicken(self) -> None:
        """From now on only serve, on this device: see ``FrozenLLM.quicken``."""
        self.llm.quicken()
        self._shared = None

    @property
    def device(self) -> torch.device:
        return self.prefixes.device

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps: prefixes, prompting transformer, statistics of the states."""
        return dict(self.state_dict())

    # --- the LLM's part ---

    def soft_attributes(self, names: Sequence[str]) -> Tensor:
        """[V, N, K, L, d]: the LLM's states for each name, one pass for all names.

        With gradient to the prefixes when they require it and gradients are enabled, else by the faster serving path;
        both give the same numbers (to about 1e-5).
        """
        ids, mask = self._ids(names)
        with_gradient = torch.is_grad_enabled() and self.prefixes.requires_grad
        if not with_gradient:
            with torch.no_grad():
                states = self._decode(self._shared_prompt(), ids, mask, write_last=False).states
        elif self.config.feedback == "soft":
            states = self._decode(self.llm.share(self.prefixes, self._shared_ids), ids, mask).states
        else:
            with torch.no_grad():
                tokens = self._decode(self._shared_prompt(), ids, mask).tokens
            states = self.llm.reread(self.llm.share(self.prefixes, self._shared_ids), ids, mask, tokens)
        return states.reshape(len(names), *self.state_mean.shape)

    def _ids(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.llm.pad([self.llm.label_ids(self.prompt, name, self.config.num_decoded) for name in names])

    def _decode(self, shared: SharedPrompt, ids: Tensor, mask: Tensor, *, write_last: bool = True) -> Decoded:
        return self.llm.decode(
            shared,
            ids,
            mask,
            self.config.num_decoded,
            feedback=self.config.feedback,
            distinct=self.prompt.distinct,
            write_last=write_last,
        )

    def _shared_prompt(self) -> SharedPrompt:
        """Keys and values of the shared part under the present prefixes; computed again when these have changed."""
        if self._shared is None or not torch.equal(self._shared[0], self.prefixes):
            with torch.no_grad():
                prefixes = self.prefixes.detach().clone()
                self._shared = (prefixes, self.llm.share(prefixes, self._shared_ids))
        return self._shared[1]

    @torch.no_grad()
    def cache_states(
        self, names: Sequence[str], *, dtype: torch.dtype = torch.float32, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """``soft_attributes`` of any number of names without gradient, on the CPU: [V, N, K, L, d].

        ``progress`` is told the number of names done. The states hold for the present prefixes only.
        """
        out = torch.empty(len(names), *self.state_mean.shape, dtype=dtype)
        done = 0
        for chunk in self._chunks(names):
            out[chunk] = self.soft_attributes([names[i] for i in chunk]).to("cpu", dtype)
            done += len(chunk)
            if progress is not None:
                progress(done)
        return out

    def _chunks(self, names: Sequence[str]) -> list[list[int]]:
        """Indices in groups that fit one pass, of nearly equal length, so that little is padded."""
        most = MAX_ROWS_GPU if self.device.type == "cuda" else MAX_ROWS_CPU
        size = max(1, most // self.config.num_prefixes)
        lengths = [len(self.llm.label_ids(self.prompt, name, self.config.num_decoded)) for name in names]
        order = sorted(range(len(names)), key=lambda i: lengths[i])
        return [order[start : start + size] for start in range(0, len(order), size)]

    @torch.no_grad()
    def decoded_text(self, names: Sequence[str]) -> list[list[str]]:
        """What the LLM wrote, for people: N * K texts per name."""
        out: list[list[str]] = [[] for _ in names]
        size = self.config.tokens_per_attribute
        for chunk in self._chunks(names):
            decoded = self._decode(self._shared_prompt(), *self._ids([names[i] for i in chunk]))
            for i, tokens in zip(chunk, decoded.tokens, strict=True):
                out[i] = [self.llm.text(part) for row in tokens for part in row.split(size)]
        return out

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        """The prompt of each name and what the LLM wrote behind it under each prefix. Raises LabelTextError."""
        for name in names:
            self.check_label(name)
        per_prefix = self.config.num_attributes
        return [
            LabelDescription((self.prompt.text(name),), tuple(zip(*[iter(texts)] * per_prefix, strict=True)))
            for name, texts in zip(names, self.decoded_text(names), strict=True)
        ]

    @torch.no_grad()
    def fit_statistics(self, states: Tensor) -> None:
        """Centre and scale the states from now on by those of ``states`` [V, N, K, L, d].

        States of different labels share most of their direction; centred, their differences come first. Call it once,
        before the prompting transformer is trained.
        """
        states = states.float()
        mean = states.mean(dim=0)
        self.state_mean.copy_(mean)
        self.state_std.copy_((states - mean).flatten(0, -2).std(dim=0).clamp_min(1e-4))

    # --- CLIP's part ---

    def forward_from_states(self, names: Sequence[str], states: Tensor) -> Tensor:
        """[V, D] label features from the states of these names [V, N, K, L, d], with gradient.

        Each of the N * K text features (and one more, ``config.with_name``) is normalised before the mean, so a
        feature's length is at most 1; the paper leaves it there, ``config.renormalize`` brings it back to 1. With
        ``config.name_trust`` features are [V, 2D] (``fuse_with_names``).
        """
        if not len(names):
            return torch.zeros(0, self._dim(), device=self.device)
        centred = (states.to(self.device, torch.float32) - self.state_mean) / self.state_std
        soft = self.prompting(centred.flatten(0, 2))  # [V * N * K, L, W]
        soft = soft.view(len(names), -1, *soft.shape[1:])  # [V, N * K, L, W]
        texts = self.clip_text.encode_with_soft(names, soft, behind=self.config.soft_behind)  # [V, N * K, D]
        if self.config.with_name or self.config.name_trust:
            with torch.no_grad():
                name_alone = self.clip_text.encode(names)  # [V, D]
        if self.config.with_name:
            texts = torch.cat((texts, name_alone[:, None]), dim=1)  # [V, N * K + 1, D]
        feature = F.normalize(texts, dim=-1).mean(dim=1)
        if self.config.renormalize:
            feature = F.normalize(feature, dim=-1)
        return fuse_with_names(feature, name_alone, self.config.name_trust) if self.config.name_trust else feature

    def forward(self, names: Sequence[str]) -> Tensor:
        """[V, D] label features, with gradient to the prefixes and the prompting transformer."""
        if not len(names):
            return torch.zeros(0, self._dim(), device=self.device)
        return self.forward_from_states(names, self.soft_attributes(names))

    def check_label(self, name: str) -> None:
        """Raise LabelTextError when ``name`` cannot be encoded whole. Tokenises only."""
        self.clip_text.check(name, self.config.tokens_per_attribute)
        self.llm.label_ids(self.prompt, name, self.config.num_decoded)

    @torch.no_grad()
    def encode_labels(self, names: Sequence[str], *, progress: Callable[[int], None] | None = None) -> Tensor:
        """[V, D] float32 label features of any number of names, on the CPU, without gradient."""
        for name in names:
            self.check_label(name)  # before any work is done
        out = torch.empty(len(names), self._dim())
        done = 0
        for chunk in self._chunks(names):
            out[chunk] = self([names[i] for i in chunk]).float().cpu()
            done += len(chunk)
            if progress is not None:
                progress(done)
        return out

    def _dim(self) -> int:
        return 2 * self.clip_text.dim if self.config.name_trust else self.clip_text.dim


def fuse_with_names(features: Tensor, names: Tensor, trust: float) -> Tensor:
    """Label features [V, D] and CLIP's readings of the bare names [V, D] -> [V, 2D], for videos whose features are the
    branch's and CLIP's frame mean side by side (``video.encoder.beside``), each of length 1 / sqrt(2).

    With ``part = trust * max(0, (cos - AGREEMENT) / (1 - AGREEMENT))`` a label's similarity to a video is

        (1 - part) * label . branch + part * |label| * name . frame_mean

    A label that training has left near its name is one that CLIP knows, and of that the frozen tower has forgotten
    nothing; one that CLIP does not know has been led elsewhere, and the branch alone reads it. Mixing the outputs of a
    fine-tuned and a frozen model is what weight interpolation comes from (Wortsman et al., CVPR 2022); this is that,
    label by label.
    """
    length = features.norm(dim=1, keepdim=True)
    names = F.normalize(names, dim=1)
    agreement = (features * names).sum(dim=1, keepdim=True) / length.clamp_min(1e-6)  # [V, 1]
    part = trust * ((agreement - AGREEMENT) / (1 - AGREEMENT)).clamp(0, 1)
    return 2**0.5 * torch.cat(((1 - part) * features, part * length * names), dim=1)


def _start_prefixes(llm: FrozenLLM, num_prefixes: int) -> Tensor:
    """[N, d]: embeddings of ordinary words (the mean over a word's tokens) and noise of a tenth of their size."""
    table = llm.embedding.weight.detach().float().cpu()
    rows = [table[llm.token_ids(" " + _START_WORDS[i % len(_START_WORDS)])].mean(dim=0) for i in range(num_prefixes)]
    words = torch.stack(rows)
    return words + 0.1 * table.std() * torch.randn_like(words)
