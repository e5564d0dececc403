"""The encoder benchmark runs, and its count of operations agrees with that of torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from support.video_encoder import make_encoder
from vidlex.service.bench.encode import EncodeOptions, count_operations, run


@pytest.mark.parametrize("blocks", [0, 2])
def test_operation_count_agrees_with_torch(blocks: int) -> None:
    """Torch counts the plain encoder, which computes the last block for all tokens; the excess is subtracted."""
    encoder = make_encoder(blocks)
    frames = torch.zeros(2, 3, 3, 32, 32, dtype=torch.uint8)
    torch.backends.mha.set_fastpath_enabled(False)  # the fused kernels are not counted
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            encoder(frames)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    width, hidden, tokens = 64, 256, 17
    last = (tokens - 1) * (4 * width**2 + 4 * width * hidden + 4 * tokens * width)
    projections = 6 * 2 * width * 24 * (1 + bool(blocks))
    counted = counter.get_total_flops() - 6 * last - projections
    assert counted == pytest.approx(count_operations(encoder, num_videos=2, num_frames=3), rel=1e-3)


def test_quick_run_measures_both_precisions() -> None:
    found = run(EncodeOptions(quick=True, device="cpu", backbone="", num_frames=2))
    assert [case.name.rpartition("=")[2] for case in found.cases] == ["float32", "auto"]
    for case in found.cases:
        assert [timing.name.split(",")[0] for timing in case.timings] == ["vidlex", "open_clip", "open_clip"]
        assert case.floor is not None and case.floor.seconds > 0
        values = {figure.name: figure.value for figure in case.figures}
        assert values["least cosine with float32"] >= 0.999
        assert values["largest change of a probability"] <= 0.01
