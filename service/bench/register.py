"""Registering labels: vectors per second beside one `generate()` of transformers per label and prefix.

The reference is what transformers offers to whoever follows the paper: for each label and prefix the embedded prompt
goes to ``generate`` with its own cache, greedy, the hidden states are taken from its answer, and the prompting
transformer and CLIP's text tower finish the label. Both must give the same vectors.
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
from vidlex.model.text.llm import FrozenLLM
from vidlex.model.weights import fetch_llm
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
    reference_labels: int = 16
    """The reference does at most so many labels per repetition; its speed per label does not depend on their number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference_labels < 1:
            raise ValueError("reference_labels must be positive")


def run(options: RegisterOptions) -> Report:
    ours = getattr(load_classifier(options.model, device=options.device), "label", None)
    if not isinstance(ours, LabelEncoder):
        raise BenchError(f"{options.model} has no language model: its labels are one pass of CLIP's text tower")
    plain = LabelEncoder(FrozenLLM.load(fetch_llm(ours.config.llm), device=ours.device), ours.clip_text, ours.config)
    plain.load_state_dict(ours.state_dict())
    plain.eval()
    sizes = (1,) if options.quick else (1, 32, 256)
    return report("register", [_case(n, ours, plain, options) for n in sizes], options)


def _case(num_labels: int, ours: LabelEncoder, plain: LabelEncoder, options: RegisterOptions) -> Case:
    names = [f"{_WORDS[i % len(_WORDS)]} {_WORDS[i // len(_WORDS) % len(_WORDS)]} {i}" for i in range(num_labels)]
    few = names[: options.reference_labels]
    results: dict[str, Tensor] = {}
    processor: dict[str, list[float]] = {"ours": [], "theirs": []}

    def keep(key: str, work: Callable[[], Tensor]) -> Callable[[], None]:
        def do() -> None:
            started = time.process_time()
            results[key] = work()
            processor[key].append(time.process_time() - started)

        return do

    sides = [
        Side("vidlex", keep("ours", lambda: ours.encode_labels(names))),
        Side("generate() per label and prefix", keep("theirs", lambda: reference_vectors(plain, few))),
    ]
    mine, theirs = alternate(sides, options, work=num_labels, unit="labels")
    theirs = theirs.model_copy(update={"work": float(len(few))})
    difference = float((results["ours"][: len(few)] - results["theirs"]).abs().max())
    figures = [Figure(name="largest difference of the vectors", value=difference, at_most=MAX_DIFFERENCE)]
    if str(ours.device) == "cpu":  # waiting threads count as work, but other programs do not: for a busy machine
        each = [median(processor["ours"]) / num_labels, median(processor["theirs"]) / len(few)]
        figures.append(Figure(name="processor time per label, theirs to ours", value=each[1] / each[0], unit="x"))
    return Case(
        name=f"{num_labels} label{'s' if num_labels > 1 else ''}",
        timings=(mine, theirs),
        ratios=(ratio(mine, theirs, at_least=10.0 if num_labels > 1 else None),),
        figures=tuple(figures),
        floor=_floor(plain, names),
        note="" if num_labels > 1 else "a lone label is bound by reading the weights once per token, on either side",
    )


@torch.no_grad()
def reference_vectors(encoder: LabelEncoder, names: list[str]) -> Tensor:
    """[V, D], by ``generate`` alone: nothing of our own decoding is used."""
    llm, config, prompt = encoder.llm, encoder.config, encoder.prompt
    from transformers import LogitsProcessorList

    states = torch.empty(len(names), config.num_prefixes, config.num_decoded, llm.width)
    for v, name in enumerate(names):
        label = llm.label_ids(prompt, name, config.num_decoded)
        words = llm.embedding(torch.tensor([llm.shared_ids(prompt) + label], device=llm.device))
        for n, prefix in enumerate(encoder.prefixes):
            rule = LogitsProcessorList([_Rule(encoder, label)])
            out: Any = llm.model.generate(
                inputs_embeds=torch.cat((prefix[None, None].to(words.dtype), words), dim=1),
                attention_mask=torch.ones(1, 1 + words.shape[1], dtype=torch.long, device=llm.device),
                max_new_tokens=config.num_decoded,
                do_sample=False,
                logits_processor=rule,
                output_hidden_states=True,
                return_dict_in_generate=True,
            )
            states[v, n] = torch.stack([step[-1][0, -1] for step in out.hidden_states]).float().cpu()
    shape = (config.num_attributes, config.tokens_per_attribute, llm.width)
    return encoder.forward_from_states(names, states.view(*states.shape[:2], *shape)).cpu()


class _Rule:
    """What may be written, as a logits processor: the encoder's own rule over the ids written so far."""

    def __init__(self, encoder: LabelEncoder, label: list[int]) -> None:
        self._encoder, self._label = encoder, label

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        label = torch.tensor([self._label], device=scores.device)
        written = torch.cat((label, input_ids.to(scores.device)), dim=1)
        return self._encoder.llm.allowed(scores, written, distinct=self._encoder.prompt.distinct)


def _floor(encoder: LabelEncoder, names: list[str]) -> Floor:
    """Time of the matrix products alone, or of reading the weights once per token if that is longer."""
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
