"""Encoding labels, against one ``generate()`` of transformers per label and prefix.

The reference implements the paper with transformers: for each label and prefix it calls ``generate`` greedily with the
embedded prompt and a separate cache, and passes the hidden states to the prompting transformer and CLIP's text tower.
Both sides must give the same vectors.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vidlex.model.factory import load_classifier
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.text.load_llm import load_llm
from vidlex.model.weights.llm import fetch_llm
from vidlex.service.bench.harness import (
    BenchError,
    BenchOptions,
    Case,
    Figure,
    Floor,
    Report,
    Side,
    alternate,
    ratio,
    report,
)
from vidlex.service.bench.machine import matrix_rate, memory_rate

MAX_DIFFERENCE = 1e-4
_WORDS = ("dog", "cutting", "beach", "red", "running", "guitar", "street", "cooking", "child", "slowly", "football")


@dataclass(frozen=True)
class RegisterOptions(BenchOptions):
    # The speed of the reference per label does not depend on the number of labels.
    reference_labels: int = 16
    """Most labels in one run of the reference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference_labels < 1:
            raise ValueError("reference_labels must be positive")


def run(options: RegisterOptions) -> Report:
    ours = getattr(load_classifier(options.model, device=options.device), "label", None)
    if not isinstance(ours, LabelEncoder):
        raise BenchError(f"{options.model} has no language model")
    llm = load_llm(fetch_llm(ours.config.llm), device=ours.device, dtype=ours.llm.dtype)
    plain = LabelEncoder(llm, ours.clip_text, ours.config)
    plain.load_state_dict(ours.state_dict())
    plain.eval()
    sizes = (1,) if options.quick else (1, 32, 256)
    return report("register", [_case(n, ours, plain, options) for n in sizes], options)


def _case(num_labels: int, ours: LabelEncoder, plain: LabelEncoder, options: RegisterOptions) -> Case:
    names = [f"{_WORDS[i % len(_WORDS)]} {_WORDS[i // len(_WORDS) % len(_WORDS)]} {i}" for i in range(num_labels)]
    few = names[: options.reference_labels]
    results: dict[str, Tensor] = {}
    processor_seconds: dict[str, list[float]] = {"ours": [], "theirs": []}

    def recording(key: str, work: Callable[[], Tensor]) -> Callable[[], None]:
        def run_once() -> None:
            started = time.process_time()
            results[key] = work()
            processor_seconds[key].append(time.process_time() - started)

        return run_once

    sides = [
        Side("vidlex", recording("ours", lambda: ours.encode_labels(names))),
        Side("generate() per label and prefix", recording("theirs", lambda: reference_vectors(plain, few))),
    ]
    mine, theirs = alternate(sides, options, work=num_labels, unit="labels")
    theirs = theirs.model_copy(update={"work": float(len(few))})
    difference = float((results["ours"][: len(few)] - results["theirs"]).abs().max())
    figures = [Figure(name="largest difference of vectors", value=difference, at_most=MAX_DIFFERENCE)]
    if str(ours.device) == "cpu":  # processor time is independent of the load by other programs
        per_label = median(processor_seconds["ours"]) / num_labels
        reference_per_label = median(processor_seconds["theirs"]) / len(few)
        speedup = reference_per_label / per_label
        figures.append(Figure(name="processor time per label, reference over vidlex", value=speedup, unit="x"))
    return Case(
        name=f"{num_labels} label{'s' if num_labels > 1 else ''}",
        timings=(mine, theirs),
        ratios=(ratio(mine, theirs, at_least=10.0 if num_labels > 1 else None),),
        figures=tuple(figures),
        floor=_floor(plain, names),
        note="" if num_labels > 1 else "With one label both sides are bound by reading the weights once per token.",
    )


@torch.no_grad()
def reference_vectors(encoder: LabelEncoder, names: list[str]) -> Tensor:
    # [V, D]
    llm, config, prompt = encoder.llm, encoder.config, encoder.prompt
    from transformers import LogitsProcessorList

    states = torch.empty(len(names), config.num_prefixes, config.num_decoded, llm.width)
    for v, name in enumerate(names):
        label = llm.label_ids(prompt, name, config.num_decoded)
        words = llm.embedding(torch.tensor([llm.shared_ids(prompt) + label], device=llm.device))
        for n, prefix in enumerate(encoder.prefixes):
            processors = LogitsProcessorList([_AllowedTokens(encoder, label)])
            out: Any = llm.model.generate(
                inputs_embeds=torch.cat((prefix[None, None].to(words.dtype), words), dim=1),
                attention_mask=torch.ones(1, 1 + words.shape[1], dtype=torch.long, device=llm.device),
                max_new_tokens=config.num_decoded,
                do_sample=False,
                logits_processor=processors,
                output_hidden_states=True,
                return_dict_in_generate=True,
            )
            states[v, n] = torch.stack([step[-1][0, -1] for step in out.hidden_states]).float().cpu()
    shape = (config.num_attributes, config.tokens_per_attribute, llm.width)
    return encoder.forward_from_states(names, states.view(*states.shape[:2], *shape)).cpu()


class _AllowedTokens:
    def __init__(self, encoder: LabelEncoder, label: list[int]) -> None:
        self._encoder, self._label = encoder, label

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        label = torch.tensor([self._label], device=scores.device)
        written = torch.cat((label, input_ids.to(scores.device)), dim=1)
        return self._encoder.llm.mask_logits(scores, written, distinct=self._encoder.prompt.distinct)


def _floor(encoder: LabelEncoder, names: list[str]) -> Floor:
    """The matrix products, or reading the weights once per token if that takes longer."""
    llm, config = encoder.llm, encoder.config
    body = sum(weight.numel() for weight in llm.model.base_model.layers.parameters())
    head = llm.embedding.weight.numel()
    lengths = [len(llm.label_ids(encoder.prompt, name, config.num_decoded)) for name in names]
    steps, rows = config.num_decoded - 1, config.num_prefixes
    per_token = 2 * rows * (body * (sum(lengths) + len(names) * steps) + head * len(names) * steps)
    device = str(llm.device)
    compute = per_token / matrix_rate(device=device)
    reading = 4 * ((1 + steps) * body + steps * head) / memory_rate(device=device)
    which = "matrix products" if compute > reading else "reading the weights once per token"
    return Floor(seconds=max(compute, reading), how=f"{which}, at the machine's measured rate")
