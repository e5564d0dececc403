"""Chooses the fastest video encoder implementation whose features match ``VideoEncoder`` in float32.

Every candidate encodes synthetic videos on the serving device. It is rejected if it fails, if a feature's cosine is
below MIN_COSINE, or if a label's probability could change by more than MAX_PROBABILITY_CHANGE. Int8 is not a candidate:
torch's dynamic quantisation of the linear layers changed probabilities of emoji-small by up to 0.03 (cosine 0.9998).
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

from vidlex.model.packed_linear import cpu_supports_bfloat16
from vidlex.model.scoring import Scorer
from vidlex.model.video.cuda_graphs import GraphedVideoEncoder
from vidlex.model.video.encoder import VideoEncoder
from vidlex.model.video.fast_encoder import FastVideoEncoder, can_be_fast
from vidlex.model.video.folded_tower import FoldedEncoder, can_fold
from vidlex.model.video.precision_cache import ChoiceKey, load_choice, save_choice

Precision = Literal["auto", "float32", "bfloat16", "float16"]

PLAIN = "plain float32"
MIN_COSINE = 0.999
MAX_PROBABILITY_CHANGE = 0.01
_MAX_TIME_RATIO = 0.9  # a lower precision must take less than this fraction of the best float32 time
_PROBE_VIDEOS, _PROBE_FRAMES, _PROBE_DIRECTIONS = 4, 2, 256
_TIMED_RUNS = 3
_TIMED_SECONDS = 1.0

_log = logging.getLogger(__name__)


class ServingEncoder(Protocol):
    def encode_video(self, frames: Tensor) -> Tensor:
        """[B, T, H, W, 3] uint8 on any device -> [B, D] float32 unit vectors on the encoder's device."""
        ...


class PlainVideoEncoder:
    def __init__(self, encoder: VideoEncoder, dtype: torch.dtype = torch.float32) -> None:
        self.encoder, self.dtype = encoder, dtype

    @torch.inference_mode()
    def encode_video(self, frames: Tensor) -> Tensor:
        device = self.encoder.mean.device
        autocast: AbstractContextManager[object] = nullcontext()
        if self.dtype != torch.float32:
            autocast = torch.autocast(device.type, self.dtype)
        with autocast:
            features = self.encoder(frames.to(device).permute(0, 1, 4, 2, 3))  # from [B, T, 3, H, W]
        return F.normalize(features.float(), dim=-1)


@dataclass(frozen=True, eq=False)
class EncoderChoice:
    encoder: ServingEncoder
    name: str  # such as ``fast bfloat16``
    cosine: float  # minimum over the probe videos
    probability_change: float  # maximum over the probe videos and labels


def choose_encoder(
    encoder: VideoEncoder, *, precision: Precision, image_size: int, scorer: Scorer, fingerprint: str | None = None
) -> EncoderChoice:
    """The fastest verified implementation of ``encoder`` on its device.

    ``auto`` measures all candidates. Another ``precision`` measures its own, and falls back to float32 with a warning
    if none of them is verified. With the model's ``fingerprint`` the choice is stored
    (``vidlex.model.video.precision_cache``): later starts verify it without measuring.
    """
    reference = PlainVideoEncoder(encoder)
    frames = probe_videos(image_size).to(encoder.mean.device)
    expected = reference.encode_video(frames)
    plain = EncoderChoice(reference, PLAIN, 1.0, 0.0)
    candidates = [
        (name, dtype, make)
        for name, dtype, make in _candidates(encoder)
        if dtype == torch.float32 or precision in ("auto", _name(dtype))
    ]
    key = None
    if fingerprint is not None:
        names = (PLAIN, *(name for name, _, _ in candidates))
        key = ChoiceKey.for_device(fingerprint, precision, names, encoder.mean.device)
        stored = load_choice(key)
        if stored == PLAIN:
            return plain
        for name, _, make in candidates:
            if name == stored and (choice := _verify(name, make, frames, expected, scorer)) is not None:
                return choice
    best, best_seconds = plain, _measure_seconds(reference, frames)
    for name, dtype, make in candidates:
        candidate = _verify(name, make, frames, expected, scorer)
        if candidate is None:
            continue
        seconds = _measure_seconds(candidate.encoder, frames)
        is_lower_than_best = dtype != torch.float32 and "float32" in best.name
        is_requested = is_lower_than_best and precision == _name(dtype)
        max_ratio = _MAX_TIME_RATIO if is_lower_than_best else 1.0
        if is_requested or seconds < max_ratio * best_seconds:
            best, best_seconds = candidate, seconds
    if precision not in ("auto", "float32") and precision not in best.name:
        _log.warning("no %s implementation of the video encoder passed verification; using %s", precision, best.name)
    if key is not None:
        save_choice(key, best.name)
    return best


def _verify(
    name: str, make: Callable[[], ServingEncoder], frames: Tensor, expected: Tensor, scorer: Scorer
) -> EncoderChoice | None:
    try:
        candidate = make()
        if frames.is_cuda:
            candidate.encode_video(frames)  # the second call may replay a captured graph
        cosine, change = max_differences(expected, candidate.encode_video(frames), scorer)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        _log.warning("the video encoder cannot run as %s: %s", name, str(error)[:300])
        return None
    if not (cosine >= MIN_COSINE and change <= MAX_PROBABILITY_CHANGE):  # rejects NaN too
        _log.warning("rejected %s: cosine %.5f, probability change %.4f", name, cosine, change)
        return None
    return EncoderChoice(candidate, name, cosine, change)


def max_differences(expected: Tensor, features: Tensor, scorer: Scorer) -> tuple[float, float]:
    """Minimum cosine and maximum change of a label's probability between two sets of unit vectors [B, D].

    The labels are random directions and the features themselves, at the steepest point of the sigmoid, where a
    similarity error d changes the probability by ``slope * logit_scale / 4 * d``.
    """
    generator = torch.Generator().manual_seed(0)
    labels = F.normalize(torch.randn(_PROBE_DIRECTIONS, expected.shape[1], generator=generator), dim=-1)
    error = (features - expected).double().cpu()
    labels = torch.cat((labels.double(), expected.double().cpu()))  # [V, D]
    max_error = float((error @ labels.T).abs().max())
    max_slope = scorer.calibration.slope * scorer.logit_scale / 4
    return float(F.cosine_similarity(expected, features).min()), max_slope * max_error


def probe_videos(image_size: int) -> Tensor:  # [B, T, H, W, 3] uint8; smooth patches that move, with noise
    generator = torch.Generator().manual_seed(0)
    count = _PROBE_VIDEOS * _PROBE_FRAMES
    coarse = torch.rand(_PROBE_VIDEOS, 3, 5, 5, generator=generator).repeat_interleave(_PROBE_FRAMES, dim=0)
    large = F.interpolate(coarse, size=(image_size, image_size), mode="bicubic", align_corners=False)
    shifted = torch.stack([x.roll((i % _PROBE_FRAMES) * image_size // 8, dims=-1) for i, x in enumerate(large)])
    noise = torch.randn(count, 3, image_size, image_size, generator=generator)
    pixels = ((shifted + 0.05 * noise).clamp(0, 1) * 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).reshape(_PROBE_VIDEOS, _PROBE_FRAMES, image_size, image_size, 3).contiguous()


def _candidates(encoder: VideoEncoder) -> Iterator[tuple[str, torch.dtype, Callable[[], ServingEncoder]]]:
    kind = encoder.mean.device.type
    if kind not in ("cpu", "cuda"):
        return
    halves: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)
    if kind == "cpu":
        # without bfloat16 kernels, one bfloat16 pass takes as long as a hundred in float32
        halves = (torch.bfloat16,) if cpu_supports_bfloat16() else ()
    for dtype in (torch.float32, *halves):
        if can_be_fast(encoder):
            yield f"fast {_name(dtype)}", dtype, lambda dtype=dtype: FastVideoEncoder(encoder, dtype)  # type: ignore[misc]
            if kind == "cuda":
                yield (
                    f"graphed {_name(dtype)}",
                    dtype,
                    lambda dtype=dtype: GraphedVideoEncoder(FastVideoEncoder(encoder, dtype)),  # type: ignore[misc]
                )
        elif can_fold(encoder):
            yield f"folded {_name(dtype)}", dtype, lambda dtype=dtype: FoldedEncoder(encoder, dtype)  # type: ignore[misc, arg-type]
        elif dtype != torch.float32:
            yield f"autocast {_name(dtype)}", dtype, lambda dtype=dtype: PlainVideoEncoder(encoder, dtype)  # type: ignore[misc]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _measure_seconds(encoder: ServingEncoder, frames: Tensor) -> float:
    best = float("inf")
    deadline = time.perf_counter() + _TIMED_SECONDS
    for run in range(_TIMED_RUNS + 1):
        started = time.perf_counter()
        if run > 1 and started > deadline:
            break
        encoder.encode_video(frames[:1]).cpu()  # synchronises with the device
        if run:
            best = min(best, time.perf_counter() - started)
    return best
