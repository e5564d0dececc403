"""Peak memory of one step of the label stage with the text tower of a CLIP B/16, in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch

from vidlex.model.config import LabelEncoderConfig
from vidlex.model.scoring import similarity_to_logit
from vidlex.model.text.clip_text import ClipText
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.text.label_memory import bound_label_memory, label_stage_bytes
from vidlex.model.text.load_llm import load_llm
from vidlex.model.train.losses import NEGATIVE, POSITIVE, weighted_bce
from vidlex.model.weights.llm import fetch_llm
from vidlex.service.bench.harness import Case, Figure

CLIP_NAME = "ViT-B-16-quickgelu"  # random weights: they do not change the memory
NUM_PREFIXES, NUM_VIDEOS = 4, 1024
_SIZES, _THINGS = ("small", "large", "old", "new", "wooden"), ("dog", "boat", "tree", "street", "piano")


class Peak(NamedTuple):
    grown_bytes: int  # peak of the process, or of the GPU's allocator, above what it had before the step
    estimated_bytes: int  # of activations, with recomputation
    whole_bytes: int  # without, estimated
    num_chunk_labels: int
    seconds: float


def memory_case(num_labels: int, device: str) -> Case:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        peak = pool.submit(measure_peak, num_labels, device).result()
    return Case(
        name=f"label stage: {num_labels} labels, {NUM_PREFIXES} prefixes, text tower of {CLIP_NAME}",
        figures=(
            Figure(name="peak of one step", value=peak.grown_bytes / 1e9, unit="GB"),
            Figure(name="activations, estimated", value=peak.estimated_bytes / 1e9, unit="GB"),
            Figure(name="activations without recomputation, estimated", value=peak.whole_bytes / 1e9, unit="GB"),
            Figure(name="labels at a time", value=peak.num_chunk_labels),
            Figure(name="time of one step", value=peak.seconds, unit="s"),
        ),
        note="The peak includes gradients, the states of the language model and the features.",
    )


def measure_peak(num_labels: int, device: str) -> Peak:
    """Of a forward and a backward pass over all labels, with the default recomputation."""
    torch.manual_seed(0)
    clip = open_clip.create_model(CLIP_NAME, pretrained=None)
    text = ClipText(clip, open_clip.get_tokenizer(CLIP_NAME))
    config = LabelEncoderConfig(num_prefixes=NUM_PREFIXES).for_device(device)
    dtype = torch.bfloat16 if config.llm_dtype == "bfloat16" else torch.float32
    encoder = LabelEncoder(load_llm(fetch_llm(config.llm), dtype=dtype), text, config).to(device)
    encoder.prefixes.requires_grad_(False)
    names = [f"{_SIZES[i % 5]} {_THINGS[i // 5 % 5]} {i}" for i in range(num_labels)]
    bound_label_memory(encoder, names, None, report=lambda message: None)
    states = torch.randn(num_labels, *encoder.state_mean.shape)
    videos = torch.nn.functional.normalize(torch.randn(NUM_VIDEOS, encoder.dim, device=device), dim=-1)
    targets = torch.where(torch.rand(NUM_VIDEOS, num_labels) < 0.01, POSITIVE, NEGATIVE).to(torch.int8).to(device)

    def step(count: int) -> None:
        labels = encoder.forward_from_states(names[:count], states[:count].to(device))
        logits = similarity_to_logit(videos @ labels.T, torch.tensor(15.0, device=device), torch.tensor(-7.0))
        weighted_bce(logits, targets[:, :count], torch.ones(count, device=device), 1.0).backward()  # type: ignore[no-untyped-call]

    step(2)  # gradients exist, libraries have their buffers
    before = _reset_peak(device)
    started = time.perf_counter()
    step(num_labels)
    seconds = time.perf_counter() - started
    whole = label_stage_bytes(encoder, names, num_chunk_labels=0)
    return Peak(_peak(device) - before, label_stage_bytes(encoder, names), whole, encoder.num_chunk_labels, seconds)


def _reset_peak(device: str) -> int:
    """Start a new peak; returns the bytes in use."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the resident memory starts again
    return _peak(device)


def _peak(device: str) -> int:
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
