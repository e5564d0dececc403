"""The fast video encoder as CUDA graphs: one launch for a whole pass, where small batches are bound by launches."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from vidlex.model.video.fast_encoder import FastVideoEncoder

_MAX_SHAPES = 8
_WARM_UPS = 3
_RECORDING = threading.Lock()


@dataclass(frozen=True, eq=False)
class _Graph:
    graph: torch.cuda.CUDAGraph
    frames: Tensor
    features: Tensor


class GraphedVideoEncoder:
    """Records a graph for each shape [B, T] that comes often enough, and keeps the last few. One thread owns it."""

    def __init__(self, encoder: FastVideoEncoder) -> None:
        if encoder.device.type != "cuda":
            raise ValueError(f"CUDA graphs need a CUDA device, not {encoder.device}")
        self._encoder = encoder
        self._graphs: OrderedDict[torch.Size, _Graph] = OrderedDict()
        self._seen: OrderedDict[torch.Size, None] = OrderedDict()

    @torch.inference_mode()
    def encode_video(self, frames: Tensor) -> Tensor:
        """[B, T, H, W, 3] uint8 -> [B, D] float32 unit vectors. The second time that a shape comes, it is recorded."""
        shape = frames.shape
        found = self._graphs.get(shape)
        if found is None:
            if shape not in self._seen:
                self._seen[shape] = None
                if len(self._seen) > 16 * _MAX_SHAPES:
                    self._seen.popitem(last=False)
                return self._encoder.encode_video(frames)
            found = self._graphs[shape] = self._record(frames)
            if len(self._graphs) > _MAX_SHAPES:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(shape)
        found.frames.copy_(frames, non_blocking=True)
        found.graph.replay()
        return found.features.clone()

    def _record(self, frames: Tensor) -> _Graph:
        device = self._encoder.device
        with torch.cuda.device(device):
            still = frames.to(device).clone()
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    self._encoder.encode_video(still)
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Of this thread alone: that of another GPU goes on meanwhile, and one capture comes after the other.
            with _RECORDING, torch.cuda.graph(graph, capture_error_mode="thread_local"):
                features = self._encoder.encode_video(still)
        return _Graph(graph, still, features)
