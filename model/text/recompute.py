"""Recomputation (Chen et al., 2016, arXiv 1604.06174): less memory in training, the same gradient up to rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recompute_in_chunks(function: Callable[[slice], Tensor], num_rows: int, chunk_size: int) -> Tensor:
    """``function`` of the rows, in chunks; only one chunk's activations exist at a time.

    With gradient, each chunk is computed a second time in the backward pass. If all rows fit into one chunk, or with a
    ``chunk_size`` of 0, ``function`` is simply called once. It must be deterministic.
    """
    if not chunk_size or num_rows <= chunk_size:
        return function(slice(0, num_rows))
    chunks = [slice(start, min(start + chunk_size, num_rows)) for start in range(0, num_rows, chunk_size)]
    if not torch.is_grad_enabled():
        return torch.cat([function(rows) for rows in chunks])
    return torch.cat([checkpoint(function, rows, use_reentrant=False, preserve_rng_state=False) for rows in chunks])
