"""The fast video encoder as CUDA graphs: one launch per pass, because kernel launches dominate small batches."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from vidlex.model.video.fast_encoder import FastVideoEncoder

_MAX_SHAPES = 8
_NUM_WARMUPS = 3
_CAPTURE_LOCK = threading.Lock()


@dataclass(frozen=True, eq=False)
class _Graph:
    graph: torch.cuda.CUDAGraph
    frames: Tensor
    features: Tensor


class GraphedVideoEncoder:
    """Captures a graph for a shape [B, T] on its second use, and caches the ``_MAX_SHAPES`` most recently used.

    Not thread-safe: one thread owns it.
    """

    def __init__(self, encoder: FastVideoEncoder) -> None:
        if encoder.device.type != "cuda":
            raise ValueError(f"CUDA graphs need a CUDA device, not {encoder.device}")
        self._encoder = encoder
        self._graphs: OrderedDict[torch.Size, _Graph] = OrderedDict()
        self._seen: OrderedDict[torch.Size, None] = OrderedDict()

    @torch.inference_mode()
    def encode_video(self, frames: Tensor) -> Tensor:
        shape = frames.shape
        captured = self._graphs.get(shape)
        if captured is None:
            if shape not in self._seen:
                self._seen[shape] = None
                if len(self._seen) > 16 * _MAX_SHAPES:
                    self._seen.popitem(last=False)
                return self._encoder.encode_video(frames)
            captured = self._graphs[shape] = self._capture(frames)
            if len(self._graphs) > _MAX_SHAPES:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(shape)
        captured.frames.copy_(frames, non_blocking=True)
        captured.graph.replay()
        return captured.features.clone()

    def _capture(self, frames: Tensor) -> _Graph:
        device = self._encoder.device
        with torch.cuda.device(device):
            static_frames = frames.to(device).clone()
            warmup_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            warmup_stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(warmup_stream):
                for _ in range(_NUM_WARMUPS):
                    self._encoder.encode_video(static_frames)
            torch.cuda.current_stream(device).wait_stream(warmup_stream)
            graph = torch.cuda.CUDAGraph()
            # "thread_local" lets threads of other GPUs use CUDA during the capture; captures themselves take turns.
            with _CAPTURE_LOCK, torch.cuda.graph(graph, capture_error_mode="thread_local"):
                features = self._encoder.encode_video(static_frames)
        return _Graph(graph, static_frames, features)
