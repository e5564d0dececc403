"""Video encoding, against the image tower of the same CLIP and against the machine's rate of matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from torch import Tensor

from vidlex.model.config import VideoEncoderConfig
from vidlex.model.factory import load_classifier
from vidlex.model.packed_linear import PackedLinear
from vidlex.model.scoring import Scorer
from vidlex.model.torch_classifier import TorchClassifier
from vidlex.model.video.encoder import VideoEncoder
from vidlex.model.video.fast_encoder import can_be_fast
from vidlex.model.video.precision import EncoderChoice, choose_encoder
from vidlex.service.bench.harness import (
    BenchError,
    BenchOptions,
    Case,
    Figure,
    Floor,
    Report,
    Side,
    compare,
    report,
    timed,
)

MAX_TIMES_CLIP = 1.45
# Of the measured rate of matrix products in the same precision and shapes.
MIN_SHARE = {"cpu": 0.8, "cuda": 0.5}
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_SCORER = Scorer(logit_scale=100.0)


@dataclass(frozen=True)
class EncodeOptions(BenchOptions):
    num_videos: int = 1
    """Videos in a batch."""
    num_frames: int = 8
    """Frames per video."""
    backbone: str = "ViT-B-16"
    """Also measure this open_clip architecture with random weights; empty: none."""
    num_branch_blocks: int = 4
    """Blocks of the backbone's temporal branch."""


def run(options: EncodeOptions) -> Report:
    return report("encode", [case for one in _encoders(options) for case in _cases(*one, options)], options)


def _encoders(options: EncodeOptions) -> Iterator[tuple[str, VideoEncoder, int, Scorer]]:
    """(name, encoder on its device, side of a frame in pixels, scorer)."""
    classifier = load_classifier(options.model, device=options.device)
    if not isinstance(classifier, TorchClassifier):
        raise BenchError(f"{options.model} has no video encoder to measure")
    yield classifier.id, classifier.video, classifier.geometry.image_size, classifier.scorer
    if options.quick or not options.backbone:
        return
    torch.manual_seed(options.seed)
    clip = open_clip.create_model(options.backbone, pretrained=None, precision="fp32", device="cpu")
    config = VideoEncoderConfig(num_branch_blocks=options.num_branch_blocks)
    encoder = VideoEncoder(clip.visual, config, mean=_CLIP_MEAN, std=_CLIP_STD).eval()
    with torch.no_grad():  # zero at initialisation, which would make the temporal attention a no-op
        for block in encoder.branch:
            block.temporal.out.weight.normal_(std=0.02)
    size = clip.visual.image_size
    name = f"{options.backbone}, random weights"
    yield name, encoder.to(classifier.device), size if isinstance(size, int) else size[0], _SCORER


def _cases(name: str, encoder: VideoEncoder, side: int, scorer: Scorer, options: EncodeOptions) -> Iterator[Case]:
    device = encoder.mean.device
    num_frames = options.num_videos * options.num_frames
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.num_videos, options.num_frames, side, side, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
    pictures = frames.flatten(0, 1).permute(0, 3, 1, 2)

    def one_by_one() -> None:
        for i in range(num_frames):
            _encode_images(encoder, pictures[i : i + 1]).cpu()

    references = [
        Side("open_clip, all frames at once", lambda: _synchronize(_encode_images(encoder, pictures))),
        Side("open_clip, frame by frame", one_by_one),
    ]
    blocks = len(encoder.branch)
    for precision in ("float32", "auto"):
        chosen = choose_encoder(encoder, precision=precision, image_size=side, scorer=scorer)
        ours = Side(f"vidlex, {chosen.name}", lambda chosen=chosen: _synchronize(chosen.encoder.encode_video(frames)))  # type: ignore[misc]
        floor, figures = _compare_with_products(encoder, chosen, ours, frames, options)
        yield compare(
            f"{name}: {options.num_videos} x {options.num_frames} frames of {side}, {blocks} branch blocks, "
            f"VIDLEX_PRECISION={precision}",
            [ours, *references],
            options,
            work=num_frames,
            unit="frames",
            at_least={references[0].name: 1 / MAX_TIMES_CLIP},
            floor=floor,
            figures=[
                *figures,
                Figure(name="least cosine with float32", value=chosen.cosine, at_least=0.999),
                Figure(name="largest change of a probability", value=chosen.probability_change, at_most=0.01),
            ],
            note="open_clip runs its image tower alone, in float32, from the same uint8 frames.",
        )


@torch.inference_mode()
def _encode_images(encoder: VideoEncoder, pictures: Tensor) -> Tensor:
    features: Tensor = encoder.visual(encoder.to_pixels(pictures))
    return features


def _synchronize(features: Tensor) -> None:
    features.cpu()  # copying waits for the device


def _compare_with_products(
    encoder: VideoEncoder, chosen: EncoderChoice, ours: Side, frames: Tensor, options: EncodeOptions
) -> tuple[Floor | None, list[Figure]]:
    """Both rates are measured in turn and the best of each counts, because the speed of a shared machine drifts."""
    if not can_be_fast(encoder):
        return None, []
    dtype = getattr(torch, chosen.name.split()[-1])
    operations = count_operations(encoder, num_videos=len(frames), num_frames=frames.shape[1])
    ours.run()
    rates, times = [], []
    for _ in range(options.num_repetitions):
        rates.append(_product_rate(encoder, frames, dtype))
        times.append(min(timed(ours.run) for _ in range(3)))
    rate, seconds = max(rates), min(times)
    share = Figure(
        name="share of the rate of matrix products",
        value=operations / seconds / rate,
        at_least=MIN_SHARE[frames.device.type],
    )
    how = f"{operations / 1e9:.4g} GFLOP over {rate / 1e9:.4g} GFLOP/s of bare products, {chosen.name.split()[-1]}"
    return Floor(seconds=operations / rate, how=how), [share]


def count_operations(encoder: VideoEncoder, *, num_videos: int, num_frames: int) -> float:
    """A multiply-add is two operations.

    The last block of the trunk and of the branch computes only the first token, from the keys and values of all tokens.
    """
    visual: Any = encoder.visual
    blocks, branch = visual.transformer.resblocks, len(encoder.branch)
    width = visual.ln_post.normalized_shape[0]
    hidden = blocks[0].mlp.c_fc.out_features
    tokens = visual.positional_embedding.shape[0]
    rows = num_videos * num_frames * tokens
    firsts = num_videos * num_frames
    whole = rows * (4 * width**2 + 2 * width * hidden + 2 * tokens * width)
    first = rows * 2 * width**2 + firsts * (2 * width**2 + 2 * width * hidden + 2 * tokens * width)
    temporal = rows * (4 * width**2 + 2 * num_frames * width)
    total = visual.conv1.weight[0].numel() * width * (rows - firsts)
    total += (len(blocks) - 1) * whole + first
    if branch:
        total += (branch - 1) * whole + first + branch * temporal
    return 2.0 * float(total)


def _product_rate(encoder: VideoEncoder, frames: Tensor, dtype: torch.dtype) -> float:
    """Operations per second of the MLP's two products over all tokens, the largest part of the pass."""
    mlp: Any = encoder.visual.transformer.resblocks[0].mlp
    rows = frames.shape[0] * frames.shape[1] * encoder.visual.positional_embedding.shape[0]
    up, down = (PackedLinear(layer.weight, layer.bias, dtype=dtype) for layer in (mlp.c_fc, mlp.c_proj))
    x = torch.randn(rows, mlp.c_fc.in_features, device=frames.device).to(dtype)

    def products() -> None:
        with torch.inference_mode():
            for _ in range(4):
                y = down(up(x))
            y[0, 0].cpu()

    products()
    seconds = min(timed(products) for _ in range(3))
    operations: float = 4 * 4.0 * rows * mlp.c_fc.weight.numel()
    return operations / seconds
