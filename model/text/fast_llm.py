"""Inference-only float32 Llama for the CPU: faster than transformers' and equal up to rounding.

- Weights are prepacked, with one product for query, key and value and one for gate and up.
- Keys and values of the shared prompt are stored once per prefix, not copied for each label: attention covers the
  shared and a row's own positions in one softmax.
- A row's own keys and values are written to preallocated memory instead of being appended to a copy at every step.

A row is one label under one prefix: N * V rows, prefix-major; d is the width of a hidden state. bfloat16 weights are
not used: with native bfloat16 products they were 1.25 times as fast, but changed the vectors of 32 labels by up to
0.02.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.packed_linear import PackedLinear


@dataclass(frozen=True, eq=False)
class FastCache:  # tensors [layers, rows, kv heads, positions, head]
    shared_keys: Tensor  # one row per prefix; without positions while the shared prompt itself is read
    shared_values: Tensor
    keys: Tensor
    values: Tensor


class FastLlama:
    @torch.no_grad()
    def __init__(self, model: Any) -> None:
        if not can_be_fast(model):
            raise ValueError(f"{type(model).__name__} is not a float32 Llama on a CPU")
        body, config = model.base_model, model.config
        self._rotary = body.rotary_emb
        self._norm = _Norm(body.norm)
        self._layers = [_Layer(layer, config) for layer in body.layers]
        self.head = PackedLinear(model.get_output_embeddings().weight)
        self._kv_heads: int = config.num_key_value_heads
        self._head_dim: int = self._layers[0].head_dim

    def prefill(self, x: Tensor) -> FastCache:
        n, length, _ = x.shape  # [N, 1 + M, d], prefixes and shared prompt
        empty = self._allocate(n, 0)
        cache = FastCache(empty, empty, self._allocate(n, length), self._allocate(n, length))
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        self.forward(cache, x, torch.arange(length).expand(n, -1), 0, causal.expand(n, -1, -1))
        return FastCache(cache.keys, cache.values, empty, empty)

    def expand(self, cache: FastCache, num_labels: int, length: int) -> FastCache:
        # own positions for N * V rows, not initialised
        rows = cache.shared_keys.shape[1] * num_labels
        own_keys, own_values = self._allocate(rows, length), self._allocate(rows, length)
        return FastCache(cache.shared_keys, cache.shared_values, own_keys, own_values)

    def forward(self, cache: FastCache, x: Tensor, position: Tensor, start: int, mask: Tensor | None) -> Tensor:
        """[rows, M, d] embeddings -> [rows, M, d] states after the final norm; fills own positions from ``start`` on.

        ``position`` [rows, M] indexes the rotary embedding. ``mask`` [rows, M, start + M] is true where a position may
        attend to an own position; None: everywhere.
        """
        cos, sin = self._rotary(x, position)  # [rows, M, head], both halves equal
        half = self._head_dim // 2
        rotation = torch.complex(cos[..., :half].contiguous(), sin[..., :half].contiguous())[:, :, None]
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))[:, None, :, None]  # [rows, 1, M, 1, own]
        step = _Step(rotation, start, bias)
        end = start + x.shape[1]
        for i, layer in enumerate(self._layers):
            shared = (cache.shared_keys[i], cache.shared_values[i])
            own = (cache.keys[i, :, :, :end], cache.values[i, :, :, :end])
            x = layer(x, step, shared, own)
        return self._norm(x)

    def _allocate(self, rows: int, length: int) -> Tensor:
        return torch.empty(len(self._layers), rows, self._kv_heads, length, self._head_dim)


def can_be_fast(model: Any) -> bool:
    from transformers import LlamaForCausalLM

    if type(model) is not LlamaForCausalLM:
        return False
    weight = model.model.embed_tokens.weight
    return bool(weight.device.type == "cpu" and weight.dtype == torch.float32 and model.config.hidden_act == "silu")


@dataclass(frozen=True, eq=False)
class _Step:
    rotation: Tensor  # [rows, M, 1, head / 2] complex
    start: int  # own positions filled by earlier passes
    bias: Tensor | None  # [rows, 1, M, 1, own], added to the scores


_KeysValues = tuple[Tensor, Tensor]  # [rows, kv heads, positions, head] each; [N, ...] if shared


class _Norm:
    def __init__(self, norm: Any) -> None:
        self._weight: Tensor = norm.weight.detach().clone()
        self._eps: float = norm.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self._weight.shape, self._weight, self._eps)


class _Layer:
    def __init__(self, layer: Any, config: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim: int = attention.head_dim
        self._kv: int = config.num_key_value_heads
        self._group: int = config.num_attention_heads // self._kv
        # The rotary embedding rotates the channel pairs (i, i + head / 2). Adjacent channels can be viewed as one
        # complex number, and reordering query and key equally does not change their products.
        interleaved = torch.arange(self.head_dim).view(2, -1).T.flatten()
        query, key = (
            _reorder_head_channels(m, self.head_dim, interleaved) for m in (attention.q_proj, attention.k_proj)
        )
        scale = float(attention.scaling)
        value = (attention.v_proj.weight, attention.v_proj.bias)
        self._qkv = _concat_linear((query[0] * scale, None if query[1] is None else query[1] * scale), key, value)
        self._out = PackedLinear(attention.o_proj.weight, attention.o_proj.bias)
        self._gate_up = _concat_linear(*((m.weight, m.bias) for m in (mlp.gate_proj, mlp.up_proj)))
        self._down = PackedLinear(mlp.down_proj.weight, mlp.down_proj.bias)
        self._norm_1, self._norm_2 = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)

    def __call__(self, x: Tensor, step: _Step, shared: _KeysValues, own: _KeysValues) -> Tensor:
        x = x + self._out(self._attend(self._norm_1(x), step, shared, own))
        gate, up = self._gate_up(self._norm_2(x)).chunk(2, dim=-1)
        return x + self._down(F.silu(gate).mul_(up))

    def _attend(self, x: Tensor, step: _Step, shared: _KeysValues, own: _KeysValues) -> Tensor:
        rows, length, _ = x.shape
        kv, group, head = self._kv, self._group, self.head_dim
        num_rotated = kv * group + kv  # heads of queries and keys
        qkv = self._qkv(x).view(rows, length, num_rotated + kv, head)
        as_pairs = qkv[:, :, :num_rotated].view(rows, length, num_rotated, head // 2, 2)
        torch.view_as_complex(as_pairs).mul_(step.rotation)  # in place
        own_keys, own_values = own
        own_keys[:, :, step.start :] = qkv[:, :, kv * group : num_rotated].transpose(1, 2)
        own_values[:, :, step.start :] = qkv[:, :, num_rotated:].transpose(1, 2)
        q = qkv[:, :, : kv * group].view(rows, length, kv, group, head).transpose(1, 2)  # [rows, kv, M, group, head]
        q = q.reshape(rows, kv, length * group, head)
        scores = q @ own_keys.transpose(2, 3)  # [rows, kv, M * group, own]
        if step.bias is not None:
            scores.view(rows, kv, length, group, -1).add_(step.bias)
        keys, values = shared
        prefixes, _, num_shared, _ = keys.shape
        if num_shared == 0:
            out = scores.softmax(dim=-1) @ own_values
        else:
            labels = rows // prefixes
            # one product per prefix for all its labels
            shared_scores = _group_by_prefix(q, prefixes) @ keys.transpose(2, 3)  # [N, kv, V * M * group, shared]
            shared_scores = shared_scores.view(prefixes, kv, labels, length * group, num_shared).transpose(1, 2)
            shared_scores = shared_scores.reshape(rows, kv, length * group, num_shared)
            scores = torch.cat((shared_scores, scores), dim=-1).softmax(dim=-1)  # [rows, kv, M * group, shared + own]
            out = scores[..., num_shared:] @ own_values
            shared_out = _group_by_prefix(scores[..., :num_shared], prefixes) @ values  # [N, kv, V * M * group, head]
            out.view(prefixes, labels, kv, length * group, head).add_(
                shared_out.view(prefixes, kv, labels, length * group, head).transpose(1, 2)
            )
        return out.view(rows, kv, length, group, head).transpose(1, 2).reshape(rows, length, -1)


def _group_by_prefix(x: Tensor, prefixes: int) -> Tensor:  # [N * V, kv, m, n] -> [N, kv, V * m, n]
    rows, kv, m, n = x.shape
    return x.view(prefixes, rows // prefixes, kv, m, n).transpose(1, 2).reshape(prefixes, kv, -1, n)


def _reorder_head_channels(linear: nn.Linear, head_dim: int, order: Tensor) -> tuple[Tensor, Tensor | None]:
    bias: Tensor | None = linear.bias
    rows = torch.arange(len(linear.weight)).view(-1, head_dim)[:, order].flatten()
    return linear.weight[rows], None if bias is None else bias[rows]


def _concat_linear(*parts: tuple[Tensor, Tensor | None]) -> PackedLinear:
    biases = [bias for _, bias in parts if bias is not None]
    return PackedLinear(torch.cat([weight for weight, _ in parts]), torch.cat(biases) if biases else None)
