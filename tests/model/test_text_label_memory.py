"""Recomputation gives the same gradients with less memory, and the need is known before training starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from support.tiny import CLIP_KINDS, tiny_clip_text, write_llm
from vidlex.model.config import LabelEncoderConfig
from vidlex.model.text import label_memory as module
from vidlex.model.text.label_encoder import NUM_CHUNK_LABELS, LabelEncoder
from vidlex.model.text.label_memory import (
    LabelMemoryError,
    bound_label_memory,
    choose_num_chunk_labels,
    free_bytes,
    label_stage_bytes,
)
from vidlex.model.text.load_llm import load_llm
from vidlex.model.text.recompute import recompute_in_chunks

CONFIG = LabelEncoderConfig(
    num_prefixes=3, num_attributes=2, tokens_per_attribute=3, prompting_width=16, prompting_layers=1,
    prompting_heads=2, prompt_version="v1",
)  # fmt: skip
NAMES = ["x", "golden retriever", "a man is riding a very old bicycle", "cat", "spinning", "a dog", "beach"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return load_llm(write_llm(tmp_path_factory.mktemp("llm")))


def build(llm, kind: str = "clip", folder=None, **changes) -> LabelEncoder:
    return LabelEncoder(llm, tiny_clip_text(kind, folder), replace(CONFIG, **changes)).train()


def gradients(encoder: LabelEncoder, work: Callable[[], Tensor], num_chunk_labels: int) -> tuple[Tensor, list[Tensor]]:
    encoder.num_chunk_labels = num_chunk_labels
    encoder.zero_grad()
    features = work()
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return features.detach(), [p.grad.clone() for p in encoder.parameters() if p.grad is not None]


@pytest.mark.parametrize("num_chunk_labels", [1, 2, 3, 6])
@pytest.mark.parametrize("end_to_end", [False, True], ids=["states", "end-to-end"])
@pytest.mark.parametrize("changes", [{}, {"soft_behind": True, "with_name": True}, {"feedback": "soft"}])
def test_gradients_with_recomputation_are_the_same(llm, num_chunk_labels, end_to_end, changes):
    encoder = build(llm, **changes)
    states = encoder.cache_states(NAMES)

    def work() -> Tensor:
        return encoder(NAMES) if end_to_end else encoder.forward_from_states(NAMES, states)

    expected, plain = gradients(encoder, work, 0)
    features, recomputed = gradients(encoder, work, num_chunk_labels)
    soft = changes.get("feedback") == "soft" and end_to_end  # where rounding grows with every step
    torch.testing.assert_close(features, expected, atol=1e-4 if soft else 1e-6, rtol=0)
    assert len(plain) == len(recomputed) == len([*encoder.parameters()]) - (not end_to_end)
    for ours, theirs in zip(recomputed, plain, strict=True):
        assert float((ours - theirs).abs().max()) <= (1e-3 if soft else 1e-6) * max(1.0, float(theirs.abs().max()))


def test_one_chunk_is_computed_once_and_bit_equal(llm):
    encoder = build(llm)
    assert encoder.num_chunk_labels == NUM_CHUNK_LABELS
    states, calls = encoder.cache_states(NAMES), []
    features = encoder._features
    encoder._features = lambda *arguments: calls.append(len(arguments[0])) or features(*arguments)  # type: ignore
    expected, plain = gradients(encoder, lambda: encoder.forward_from_states(NAMES, states), 0)
    result, same = gradients(encoder, lambda: encoder.forward_from_states(NAMES, states), len(NAMES))
    assert torch.equal(result, expected) and all(map(torch.equal, plain, same))
    assert calls == [7, 7]
    gradients(encoder, lambda: encoder.forward_from_states(NAMES, states), 4)
    assert calls[2:] == [4, 3, 3, 4]  # the backward pass reads the chunks from the last to the first
    with torch.no_grad():
        encoder.forward_from_states(NAMES, states)
    assert calls[6:] == [4, 3]


def test_recompute_in_chunks_keeps_autocast():
    linear, x = nn.Linear(4, 4), torch.randn(6, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = recompute_in_chunks(lambda rows: linear(x[rows]), 6, 4)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def saved_bytes(encoder: LabelEncoder, work: Callable[[], Tensor]) -> int:
    modules: tuple[nn.Module, ...] = (encoder, encoder.llm.model, encoder.clip_text.clip)
    weights = {t.untyped_storage().data_ptr() for m in modules for t in (*m.parameters(), *m.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = work()
    total = sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in weights)
    del features
    return total


@pytest.mark.parametrize("kind", CLIP_KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_the_estimate_is_what_a_step_saves(llm, tmp_path, kind, autocast):
    encoder = build(llm, kind, tmp_path)
    names = [f"{name} {i}" for i in range(6) for name in NAMES]
    states = encoder.cache_states(names)
    encoder.num_chunk_labels = 0
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        measured = saved_bytes(encoder, lambda: encoder.forward_from_states(names, states))
        assert label_stage_bytes(encoder, names) == pytest.approx(measured, rel=0.2)
        assert label_stage_bytes(encoder, names[:7], num_labels=42) == pytest.approx(measured, rel=0.25)
    assert label_stage_bytes(encoder, []) == label_stage_bytes(encoder, names, num_labels=0) == 0


def test_the_estimate_through_the_language_model(llm):
    encoder = build(llm)
    encoder.num_chunk_labels = 0
    measured = saved_bytes(encoder, lambda: encoder(NAMES))
    estimate = label_stage_bytes(encoder, NAMES, end_to_end=True)
    assert estimate == pytest.approx(measured, rel=0.2)
    assert estimate > 3 * label_stage_bytes(encoder, NAMES)
    assert encoder.prefixes.requires_grad and encoder.num_chunk_labels == 0  # as before


def peak_bytes(work: Callable[[], None]) -> int:
    """The most memory that ``work`` holds at once, beyond what existed before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as result:
        work()
    current = peak = 0
    for event in result.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def test_recomputation_bounds_the_peak(llm):
    encoder = build(llm)
    names = [f"label {i}" for i in range(60)]
    states = encoder.cache_states(names)

    def step() -> None:
        encoder.zero_grad()
        encoder.forward_from_states(names, states).sum().backward()

    peaks, estimates = {}, {}
    for chunk in (0, 6):
        encoder.num_chunk_labels = chunk
        step()
        peaks[chunk], estimates[chunk] = peak_bytes(step), label_stage_bytes(encoder, names)
        assert estimates[chunk] == pytest.approx(peaks[chunk], rel=0.25)
    assert peaks[6] < 0.2 * peaks[0]


def test_the_need_is_reported_or_refused_with_the_flag(llm, monkeypatch):
    encoder = build(llm)
    names = [f"label {i}" for i in range(100)]
    lines: list[str] = []
    bound_label_memory(encoder, names, 32, report=lines.append)
    assert encoder.num_chunk_labels == 32
    assert "100 labels needs" in lines[0] and "32 labels at a time" in lines[0] and "free on cpu" in lines[0]
    bound_label_memory(encoder, names, 32, num_labels=20, report=lines.append)
    assert "a step with 20 labels" in lines[1] and "at a time" not in lines[1]

    def need(chunk: int) -> int:
        return round(module.TRANSIENT * label_stage_bytes(encoder, names, num_chunk_labels=chunk))

    monkeypatch.setattr(module, "free_bytes", lambda _: need(8) + 1)
    with pytest.raises(LabelMemoryError, match=r"use --num-chunk-labels 8$"):
        bound_label_memory(encoder, names, 32, report=lines.append)
    bound_label_memory(encoder, names, 8, report=lines.append)
    with pytest.raises(LabelMemoryError, match=r"use --label-chunk 6$"):
        bound_label_memory(encoder, names, 0, flag="--label-chunk", report=lines.append)
    monkeypatch.setattr(module, "free_bytes", lambda _: 100)
    with pytest.raises(LabelMemoryError, match="no --num-chunk-labels fits"):
        bound_label_memory(encoder, names, None, report=lines.append)


def test_the_default_chunk_fills_its_bytes(llm):
    encoder = build(llm)
    chunk = choose_num_chunk_labels(encoder, NAMES, 10_000_000)
    few, many = (label_stage_bytes(encoder, NAMES, num_labels=n, num_chunk_labels=0) for n in (chunk, chunk + 1))
    assert few <= 10_000_000 * 1.01 and many > 10_000_000 * 0.99
    assert choose_num_chunk_labels(encoder, NAMES, 1) == choose_num_chunk_labels(encoder, []) == 1
    bound_label_memory(encoder, NAMES, None, report=str)
    assert encoder.num_chunk_labels == choose_num_chunk_labels(encoder, NAMES) > len(NAMES)


def test_free_memory_of_the_host():
    assert 1 << 20 < free_bytes(torch.device("cpu")) < 1 << 50
