"""Scales decoded frames to RGB pictures, upright."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.orientation import Orientation

Picture = NDArray[np.uint8]  # [H, W, 3]


class Scaler:
    """Scales frames to ``size`` = (width, height) as shown, upright."""

    def __init__(self, size: tuple[int, int], orientation: Orientation) -> None:
        self._size = size
        self._orientation = orientation
        self._shape: tuple[int, int, str] | None = None
        self._graph: Any = None

    def __call__(self, frame: Any) -> Picture:
        shape = (frame.width, frame.height, frame.format.name)
        if shape != self._shape:
            self._graph, self._shape = self._build(frame), shape
        self._graph.push(frame)
        picture: Picture = self._graph.pull().to_ndarray()
        return picture

    def _build(self, frame: Any) -> Any:
        graph = av.filter.Graph()
        graph.threads = 1
        last = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        width, height = self._size
        for step in (*self._orientation.filters, f"scale={width}:{height}", "format=rgb24", "buffersink="):
            name, _, arguments = step.partition("=")
            node = graph.add(name, arguments or None)
            last.link_to(node)
            last = node
        graph.configure()
        return graph
