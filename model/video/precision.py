"""Which way of running the video encoder serves: the fastest here whose features are verified against the plain one.

Every candidate encodes a few made-up videos and is compared with ``VideoEncoder`` in float32 on the same device. It
is out when a feature's cosine falls below MIN_COSINE or when a label's probability could move by more than
MAX_PROBABILITY_CHANGE, and so is one that fails to run. Int8 is no candidate: torch's dynamic quantisation of the
linear layers moved probabilities of emoji-small by up to 0.03 (cosine 0.9998) in this measure.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.packed_linear import cpu_multiplies_bfloat16
from vidlex.model.scoring import Scorer
from vidlex.model.video.cuda_graphs import GraphedVideoEncoder
from vidlex.model.video.encoder import VideoEncoder
from vidlex.model.video.fast_encoder import FastVideoEncoder, can_be_fast
from vidlex.model.video.precision_cache import Situation, keep_choice, kept_choice

Precision = Literal["auto", "float32", "bfloat16", "float16"]

PLAIN = "plain float32"
MIN_COSINE = 0.999
MAX_PROBABILITY_CHANGE = 0.01
_WORTH = 0.9
"""A candidate in lower precision must take at most this share of the time of the best in float32."""
_PROBE_VIDEOS, _PROBE_FRAMES, _PROBE_DIRECTIONS = 4, 2, 256
_TIMED_RUNS = 3
_TIMED_SECONDS = 1.0

_log = logging.getLogger(__name__)


class ServingEncoder(Protocol):
    def encode_video(self, frames: Tensor) -> Tensor:
        """[B, T, H, W, 3] uint8, on any device -> [B, D] float32 unit vectors on the encoder's device."""
        ...


class PlainVideoEncoder:
    """``VideoEncoder`` itself, for every kind of tower; under autocast in another ``dtype`` than float32."""

    def __init__(self, encoder: VideoEncoder, dtype: torch.dtype = torch.float32) -> None:
        self.encoder, self.dtype = encoder, dtype

    @torch.inference_mode()
    def encode_video(self, frames: Tensor) -> Tensor:
        device = self.encoder.mean.device
        half: AbstractContextManager[object] = nullcontext()
        if self.dtype != torch.float32:
            half = torch.autocast(device.type, self.dtype)
        with half:
            features = self.encoder(frames.to(device).permute(0, 1, 4, 2, 3))
        return F.normalize(features.float(), dim=-1)


@dataclass(frozen=True, eq=False)
class Chosen:
    encoder: ServingEncoder
    name: str
    """Such as ``fast bfloat16``."""
    cosine: float
    """Least cosine between a feature and the plain encoder's, over the made-up videos."""
    probability_change: float


def choose_encoder(
    encoder: VideoEncoder, *, precision: Precision, image_size: int, scorer: Scorer, fingerprint: str | None = None
) -> Chosen:
    """The fastest verified way to run ``encoder`` on its device.

    ``auto`` measures all that the device may run; another ``precision`` measures those of that precision, and falls
    back to float32, with a line in the log, when none of them is verified. With the model's ``fingerprint`` the choice
    is kept (``vidlex.model.video.precision_cache``): the next start verifies it and measures nothing.
    """
    reference = PlainVideoEncoder(encoder)
    frames = probe_videos(image_size).to(encoder.mean.device)
    expected = reference.encode_video(frames)
    plain = Chosen(reference, PLAIN, 1.0, 0.0)
    candidates = [
        (name, dtype, make)
        for name, dtype, make in _candidates(encoder)
        if dtype == torch.float32 or precision in ("auto", _name(dtype))
    ]
    situation = None
    if fingerprint is not None:
        names = (PLAIN, *(name for name, _, _ in candidates))
        situation = Situation.here(fingerprint, precision, names, encoder.mean.device)
        kept = kept_choice(situation)
        if kept == PLAIN:
            return plain
        for name, _, make in candidates:
            if name == kept and (chosen := _verified(name, make, frames, expected, scorer)) is not None:
                return chosen
    best, best_seconds = plain, _seconds(reference, frames)
    for name, dtype, make in candidates:
        candidate = _verified(name, make, frames, expected, scorer)
        if candidate is None:
            continue
        seconds = _seconds(candidate.encoder, frames)
        asked = dtype != torch.float32 and precision == _name(dtype) and "float32" in best.name
        share = _WORTH if dtype != torch.float32 and "float32" in best.name else 1.0
        if asked or seconds < share * best_seconds:
            best, best_seconds = candidate, seconds
    if precision not in ("auto", "float32") and precision not in best.name:
        _log.warning("no way of running the encoder in %s is verified here; it runs as %s", precision, best.name)
    if situation is not None:
        keep_choice(situation, best.name)
    return best


def _verified(
    name: str, make: Callable[[], ServingEncoder], frames: Tensor, expected: Tensor, scorer: Scorer
) -> Chosen | None:
    """None, with a line in the log, for one that fails to run or is too far from ``expected``."""
    try:
        candidate = make()
        if frames.is_cuda:
            candidate.encode_video(frames)  # the second time it may be a recorded graph that runs
        cosine, change = differences(expected, candidate.encode_video(frames), scorer)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        _log.warning("the encoder cannot be run as %s: %s", name, str(error)[:300])
        return None
    if not (cosine >= MIN_COSINE and change <= MAX_PROBABILITY_CHANGE):  # also when it is not a number
        _log.warning("the encoder is not run as %s: cosine %.5f, probability off by %.4f", name, cosine, change)
        return None
    return Chosen(candidate, name, cosine, change)


def differences(expected: Tensor, features: Tensor, scorer: Scorer) -> tuple[float, float]:
    """Least cosine, and the most that a label's probability may differ, between two sets of unit vectors [B, D].

    The labels are random directions and the features themselves, each taken to lie where the sigmoid is steepest:
    there a similarity that is off by d moves the probability by ``slope * logit_scale / 4 * d``.
    """
    generator = torch.Generator().manual_seed(0)
    labels = F.normalize(torch.randn(_PROBE_DIRECTIONS, expected.shape[1], generator=generator), dim=-1)
    error = (features - expected).double().cpu()
    labels = torch.cat((labels.double(), expected.double().cpu()))
    off = float((error @ labels.T).abs().max())
    steepest = scorer.calibration.slope * scorer.logit_scale / 4
    return float(F.cosine_similarity(expected, features).min()), steepest * off


def probe_videos(image_size: int) -> Tensor:
    """[B, T, H, W, 3] uint8: soft patches of colour that drift, with some noise; always the same."""
    generator = torch.Generator().manual_seed(0)
    count = _PROBE_VIDEOS * _PROBE_FRAMES
    coarse = torch.rand(_PROBE_VIDEOS, 3, 5, 5, generator=generator).repeat_interleave(_PROBE_FRAMES, dim=0)
    large = F.interpolate(coarse, size=(image_size, image_size), mode="bicubic", align_corners=False)
    moved = torch.stack([x.roll((i % _PROBE_FRAMES) * image_size // 8, dims=-1) for i, x in enumerate(large)])
    noise = torch.randn(count, 3, image_size, image_size, generator=generator)
    pixels = ((moved + 0.05 * noise).clamp(0, 1) * 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).reshape(_PROBE_VIDEOS, _PROBE_FRAMES, image_size, image_size, 3).contiguous()


def _candidates(encoder: VideoEncoder) -> Iterator[tuple[str, torch.dtype, Callable[[], ServingEncoder]]]:
    """Name, precision and maker of each way, float32 first. bfloat16 only on a CPU that multiplies in it: elsewhere
    the first pass alone would take as long as a hundred in float32."""
    kind = encoder.mean.device.type
    if kind not in ("cpu", "cuda"):
        return
    halves: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)
    if kind == "cpu":
        halves = (torch.bfloat16,) if cpu_multiplies_bfloat16() else ()
    for dtype in (torch.float32, *halves):
        if can_be_fast(encoder):
            yield f"fast {_name(dtype)}", dtype, lambda dtype=dtype: FastVideoEncoder(encoder, dtype)  # type: ignore[misc]
            if kind == "cuda":
                yield (
                    f"graphed {_name(dtype)}",
                    dtype,
                    lambda dtype=dtype: GraphedVideoEncoder(FastVideoEncoder(encoder, dtype)),  # type: ignore[misc]
                )
        elif dtype != torch.float32:
            yield f"autocast {_name(dtype)}", dtype, lambda dtype=dtype: PlainVideoEncoder(encoder, dtype)  # type: ignore[misc]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _seconds(encoder: ServingEncoder, frames: Tensor) -> float:
    """Of one pass: the best of a few, after one that does not count."""
    best = float("inf")
    enough = time.perf_counter() + _TIMED_SECONDS
    for run in range(_TIMED_RUNS + 1):
        started = time.perf_counter()
        if run > 1 and started > enough:
            break
        encoder.encode_video(frames[:1]).cpu()  # the copy waits for the device
        if run:
            best = min(best, time.perf_counter() - started)
    return best
