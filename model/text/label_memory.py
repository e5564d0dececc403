"""The memory that training the label encoder needs, before it starts.

All labels of a step are read at once, and the backward pass needs every activation: with the text tower of a CLIP
B/16, N = 4 and 2,829 labels about 71 GB. Recomputation (``recompute``) keeps those of ``num_chunk_labels`` labels only.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

from vidlex.model.text.formats import format_bytes
from vidlex.model.text.label_encoder import LabelEncoder

# In the backward pass, there are also gradients of a layer, and an allocator does not reuse all it frees:
# with the text tower of B/16 and 96 labels, resident memory grew by 1.36 times the estimate.
TRANSIENT = 1.4

CHUNK_BYTES = 4_000_000_000

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


class LabelMemoryError(ValueError): ...


def label_stage_bytes(
    encoder: LabelEncoder,
    names: Sequence[str],
    *,
    num_labels: int | None = None,
    num_chunk_labels: int | None = None,
    end_to_end: bool = False,
) -> int:
    """Bytes that a step with ``num_labels`` of the names (default: all) saves for its backward pass.

    ``num_chunk_labels`` as in the encoder, whose value is the default. ``end_to_end``: through the LLM to the prefixes.
    It is what a pass over two labels saves, times the number of labels, since every activation has a row per label; the
    longest name is used, because shorter ones are padded to it. Call it in the training's precision (autocast).
    """
    num_labels = len(names) if num_labels is None else num_labels
    chunk = encoder.num_chunk_labels if num_chunk_labels is None else num_chunk_labels
    if not num_labels:
        return 0
    longest = max(heapq.nlargest(64, names, key=len), key=encoder.clip_text.num_tokens)
    few, more = (_saved_bytes(encoder, [longest] * count, end_to_end) for count in (2, 4))
    per_label = (more - few) / 2
    shared = few - 2 * per_label  # by all labels, such as the prompt's keys and values
    total = shared + per_label * (min(num_labels, chunk) if chunk else num_labels)
    if chunk and num_labels > chunk:  # what stays between the chunks: the features of each label
        total += 4 * num_labels * encoder.dim
    return round(total)


def choose_num_chunk_labels(encoder: LabelEncoder, names: Sequence[str], num_bytes: int = CHUNK_BYTES) -> int:
    """Labels whose activations ``num_bytes`` hold, at least one."""
    if not names:
        return 1
    few, many = (label_stage_bytes(encoder, names, num_labels=num, num_chunk_labels=0) for num in (1, 2))
    return max(1, int(num_bytes / (many - few)))


def bound_label_memory(
    encoder: LabelEncoder,
    names: Sequence[str],
    num_chunk_labels: int | None,
    *,
    num_labels: int | None = None,
    flag: str = "--num-chunk-labels",
    report: Callable[[str], None],
) -> None:
    """Set ``encoder.num_chunk_labels``, by default as many as ``CHUNK_BYTES`` hold, and report what a step needs.

    Raises LabelMemoryError, which names ``flag``, if it does not fit into the free memory.
    """
    chunk = choose_num_chunk_labels(encoder, names) if num_chunk_labels is None else num_chunk_labels
    encoder.num_chunk_labels = chunk
    num_labels = len(names) if num_labels is None else min(num_labels, len(names))

    def need(chunk: int) -> int:
        return round(TRANSIENT * label_stage_bytes(encoder, names, num_labels=num_labels, num_chunk_labels=chunk))

    needed, free = need(chunk), free_bytes(encoder.device)
    message = f"a step with {num_labels} labels needs {format_bytes(needed)} for their activations"
    if chunk and num_labels > chunk:
        message += f", {chunk} labels at a time ({format_bytes(need(0))} with {flag} 0)"
    message += f"; {format_bytes(free)} are free on {encoder.device}"
    if chunk and num_labels > chunk and encoder.device.type == "cpu":
        return_freed_memory()
    if needed > free:
        fewer = _largest_fitting(need, min(chunk or num_labels, num_labels), free)
        raise LabelMemoryError(f"{message}: " + (f"use {flag} {fewer}" if fewer else f"no {flag} fits"))
    report(message)


def _largest_fitting(need: Callable[[int], int], chunk: int, free: int) -> int:  # 0 if even one label does not fit
    while chunk > 1:
        chunk //= 2
        if need(chunk) <= free:
            return chunk
    return 0


def return_freed_memory() -> None:
    """Have glibc return each piece of 1 MiB and more to the system when it is freed; elsewhere this does nothing.

    Otherwise activations of one chunk and another leave gaps: a step with the text tower of a CLIP B/16, 2,829 labels
    and chunks of 170 grew by 14.0 GB instead of 4.3 (activations: 4.0).
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            library.mallopt(parameter, 1 << 20)


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    available = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max" is none
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        available = min(available, limit - int((group / "memory.current").read_text()))
    return available


def _saved_bytes(encoder: LabelEncoder, names: list[str], end_to_end: bool) -> int:
    """Bytes of the tensors saved for the backward pass, each memory once, without the weights."""
    weights = {_memory(tensor) for tensor in _weights(encoder)}
    saved: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no memory is released and counted twice

    def pack(tensor: Tensor) -> Tensor:
        if _memory(tensor) not in weights:
            saved[_memory(tensor)] = tensor.untyped_storage().nbytes()
            kept.append(tensor.detach())
        return tensor

    prefixes = encoder.prefixes
    required, chunk = prefixes.requires_grad, encoder.num_chunk_labels
    prefixes.requires_grad_(end_to_end)
    encoder.num_chunk_labels = 0
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if end_to_end:
                encoder(names)
            else:
                encoder.forward_from_states(names, torch.zeros(len(names), *encoder.state_mean.shape))
    finally:
        prefixes.requires_grad_(required)
        encoder.num_chunk_labels = chunk
    return sum(saved.values())


def _weights(encoder: LabelEncoder) -> Iterable[Tensor]:
    for module in (encoder, encoder.llm.model, encoder.clip_text.clip):
        yield from module.parameters()
        yield from module.buffers()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
