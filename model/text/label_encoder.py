"""The paper's label encoder (section 3.1): label names -> vectors in CLIP's space, through an LLM.

d is the width of the LLM's states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.classifier import LabelDescription
from vidlex.model.config import LabelEncoderConfig
from vidlex.model.extensions.features import extended_label_features, extends_labels, label_dim
from vidlex.model.text.clip_text import ClipText
from vidlex.model.text.llm import Decoded, FrozenLLM, SharedPrompt
from vidlex.model.text.prompting_transformer import PromptingTransformer
from vidlex.model.text.prompts import get_prompt
from vidlex.model.text.recompute import recompute_in_chunks

NUM_CHUNK_LABELS = 128

MAX_ROWS_CPU = 192
MAX_ROWS_GPU = 2048  # rows per pass of the LLM: bounds memory; larger values are not faster

_INITIAL_WORDS = ("objects", "actions", "scene", "motion", "colors", "shape", "people", "place")


class LabelEncoder(nn.Module):
    """N learned prefixes, a frozen LLM, the prompting transformer and CLIP's frozen text tower.

    Parameters and ``state_dict`` contain only what is learned. LLM and CLIP are not registered as submodules, but
    ``to(device)`` moves them too. Names are not normalised. ``check_label`` and methods that encode raise
    LabelTextError for a name that cannot be encoded whole.

    ``num_chunk_labels``: with more labels than these, their activations are computed again in the backward pass, that
    many labels at a time; 0: all are kept. ``label_memory`` chooses it.
    """

    state_mean: Tensor
    state_std: Tensor

    def __init__(self, llm: FrozenLLM, clip_text: ClipText, config: LabelEncoderConfig) -> None:
        super().__init__()
        clip_text.freeze()
        self.config = config
        self.prompt = get_prompt(config.prompt_version)
        # Bypass module registration, so that parameters() and state_dict() exclude frozen weights.
        self.__dict__["llm"], self.__dict__["clip_text"] = llm, clip_text
        self.llm: FrozenLLM
        self.clip_text: ClipText
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.prefixes = nn.Parameter(_initial_prefixes(llm, config.num_prefixes))
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
        self.num_chunk_labels = NUM_CHUNK_LABELS
        self._shared: tuple[Tensor, SharedPrompt] | None = None
        self._shared_ids = llm.shared_ids(self.prompt)
        super().to(llm.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LabelEncoder:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.llm.model._apply(fn)
        self.clip_text.clip._apply(fn)  # type: ignore[no-untyped-call]
        self._shared = None
        return self

    def optimize_for_inference(self) -> None:
        self.llm.optimize_for_inference()
        self._shared = None

    @property
    def device(self) -> torch.device:
        return self.prefixes.device

    def trainable_state_dict(self) -> dict[str, Tensor]:
        return dict(self.state_dict())

    # --- LLM ---

    def soft_attributes(self, names: Sequence[str]) -> Tensor:
        """[V, N, K, L, d] states of the LLM for all names in one pass.

        With gradient to the prefixes if enabled, otherwise by the faster serving path. Both agree to about 1e-5.
        """
        ids, mask = self._padded_ids(names)
        with_gradient = torch.is_grad_enabled() and self.prefixes.requires_grad
        if not with_gradient:
            with torch.no_grad():
                states = self._decode(self._shared_prompt(), ids, mask, with_last_token=False).states
        elif self.config.feedback == "soft":
            shared = self.llm.prefill(self.prefixes, self._shared_ids)
            states = self._in_chunks(lambda rows: self._decode(shared, ids[rows], mask[rows]).states, len(names))
        else:
            with torch.no_grad():
                before = self._shared_prompt()
                tokens = self._in_chunks(lambda rows: self._decode(before, ids[rows], mask[rows]).tokens, len(names))
            shared = self.llm.prefill(self.prefixes, self._shared_ids)
            states = self._in_chunks(
                lambda rows: self.llm.teacher_forced_states(shared, ids[rows], mask[rows], tokens[rows]), len(names)
            )
        return states.reshape(len(names), *self.state_mean.shape)

    def _in_chunks(self, function: Callable[[slice], Tensor], num_labels: int) -> Tensor:
        return recompute_in_chunks(function, num_labels, self.num_chunk_labels)

    def _padded_ids(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.llm.pad([self.llm.label_ids(self.prompt, name, self.config.num_decoded) for name in names])

    def _decode(self, shared: SharedPrompt, ids: Tensor, mask: Tensor, *, with_last_token: bool = True) -> Decoded:
        return self.llm.decode(
            shared,
            ids,
            mask,
            self.config.num_decoded,
            feedback=self.config.feedback,
            distinct=self.prompt.distinct,
            with_last_token=with_last_token,
        )

    def _shared_prompt(self) -> SharedPrompt:
        if self._shared is None or not torch.equal(self._shared[0], self.prefixes):
            with torch.no_grad():
                prefixes = self.prefixes.detach().clone()
                self._shared = (prefixes, self.llm.prefill(prefixes, self._shared_ids))
        return self._shared[1]

    @torch.no_grad()
    def cache_states(
        self, names: Sequence[str], *, dtype: torch.dtype = torch.float32, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """``soft_attributes`` [V, N, K, L, d] of any number of names, on the CPU, without gradient.

        ``progress`` receives the number of finished names. The states are valid for the current prefixes only.
        """
        out = torch.empty(len(names), *self.state_mean.shape, dtype=dtype)
        done = 0
        for chunk in self.chunks(names):
            out[chunk] = self.soft_attributes([names[i] for i in chunk]).to("cpu", dtype)
            done += len(chunk)
            if progress is not None:
                progress(done)
        return out

    @property
    def num_pass_labels(self) -> int:
        max_rows = MAX_ROWS_GPU if self.device.type == "cuda" else MAX_ROWS_CPU
        return max(1, max_rows // self.config.num_prefixes)

    def chunks(self, names: Sequence[str]) -> list[list[int]]:  # indices of the names of each pass of the LLM
        size = self.num_pass_labels
        lengths = [len(self.llm.label_ids(self.prompt, name, self.config.num_decoded)) for name in names]
        order = sorted(range(len(names)), key=lambda i: lengths[i])  # minimises padding
        return [order[start : start + size] for start in range(0, len(order), size)]

    @torch.no_grad()
    def decoded_text(self, names: Sequence[str]) -> list[list[str]]:  # N * K texts per name
        out: list[list[str]] = [[] for _ in names]
        size = self.config.tokens_per_attribute
        for chunk in self.chunks(names):
            decoded = self._decode(self._shared_prompt(), *self._padded_ids([names[i] for i in chunk]))
            for i, tokens in zip(chunk, decoded.tokens, strict=True):
                out[i] = [self.llm.text(part) for row in tokens for part in row.split(size)]
        return out

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        for name in names:
            self.check_label(name)
        per_prefix = self.config.num_attributes
        return [
            LabelDescription((self.prompt.text(name),), tuple(zip(*[iter(texts)] * per_prefix, strict=True)))
            for name, texts in zip(names, self.decoded_text(names), strict=True)
        ]

    @torch.no_grad()
    def fit_statistics(self, states: Tensor) -> None:
        """Set the mean and scale by which states are standardised, from ``states`` [V, N, K, L, d].

        States of different labels share most of their direction, which centring removes. Call it once, before the
        prompting transformer is trained.
        """
        states = states.float()
        mean = states.mean(dim=0)
        self.state_mean.copy_(mean)
        self.state_std.copy_((states - mean).flatten(0, -2).std(dim=0).clamp_min(1e-4))

    # --- CLIP ---

    def forward_from_states(self, names: Sequence[str], states: Tensor) -> Tensor:
        """States of the names [V, N, K, L, d] -> label features [V, D], with gradient.

        The N * K text features are normalised before the mean, so a label feature's length is at most 1.
        """
        if not len(names):
            return torch.zeros(0, self.dim, device=self.device)
        return self._in_chunks(lambda rows: self._features(names[rows], states[rows]), len(names))

    def _features(self, names: Sequence[str], states: Tensor) -> Tensor:
        config = self.config
        centred = (states.to(self.device, torch.float32) - self.state_mean) / self.state_std
        soft = self.prompting(centred.flatten(0, 2))  # [V * N * K, L, width]
        soft = soft.view(len(names), -1, *soft.shape[1:])  # [V, N * K, L, width]
        texts = self.clip_text.encode_with_soft(names, soft, after=config.soft_behind)  # [V, N * K, D]
        if extends_labels(config):
            return extended_label_features(texts, lambda: self.clip_text.encode(names), config)
        feature = F.normalize(texts, dim=-1).mean(dim=1)  # [V, D]
        return feature

    def forward(self, names: Sequence[str]) -> Tensor:  # [V, D], with gradient
        if not len(names):
            return torch.zeros(0, self.dim, device=self.device)
        return self.forward_from_states(names, self.soft_attributes(names))

    def check_label(self, name: str) -> None:  # tokenises only
        self.clip_text.check(name, self.config.tokens_per_attribute)
        self.llm.label_ids(self.prompt, name, self.config.num_decoded)

    @torch.no_grad()
    def encode_labels(self, names: Sequence[str], *, progress: Callable[[int], None] | None = None) -> Tensor:
        for name in names:
            self.check_label(name)  # all of them before the first pass
        out = torch.empty(len(names), self.dim)  # [V, D] float32 on the CPU
        done = 0
        for chunk in self.chunks(names):
            out[chunk] = self([names[i] for i in chunk]).float().cpu()
            done += len(chunk)
            if progress is not None:
                progress(done)
        return out

    @property
    def dim(self) -> int:
        return label_dim(self.clip_text.dim, self.config)


def _initial_prefixes(llm: FrozenLLM, num_prefixes: int) -> Tensor:  # [N, d], common words with noise
    table = llm.embedding.weight.detach().float().cpu() * llm.embedding_scale
    names = [_INITIAL_WORDS[i % len(_INITIAL_WORDS)] for i in range(num_prefixes)]
    words = torch.stack([table[llm.token_ids(f" {name}")].mean(dim=0) for name in names])
    return words + 0.1 * table.std() * torch.randn_like(words)
