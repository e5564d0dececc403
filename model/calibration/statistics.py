"""Mean and covariance of a domain's video features, and from them the mean and variance of any label's similarity.

With video features of mean ``m`` [D] and covariance ``C`` [D, D], the similarity ``s = f_v . f_t`` of a label has

    mean = f_t . m,    variance = f_t' C f_t

over the domain, without scoring any video. ``C`` is stored as its strongest directions plus one variance for all
others.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_RANK = 64
_BLOCK_ROWS = 1024
_ALIGNED_FLOATS = 16
_ALIGNED_BYTES = 64


@dataclass(frozen=True, eq=False)
class DomainStatistics:
    """Raises ValueError unless all numbers are finite and the shapes agree."""

    mean: NDArray[np.float32]  # [D]
    basis: NDArray[np.float32]  # [r, D] orthogonal rows: principal directions, each times its standard deviation
    residual: float  # variance in each direction orthogonal to the basis
    num_videos: int

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.basis.ndim != 2 or self.basis.shape[1] != len(self.mean):
            raise ValueError(f"expected mean [D] and basis [r, D], got {self.mean.shape} and {self.basis.shape}")
        if len(self.basis) > self.dim or not len(self.mean):
            raise ValueError(f"a basis of {len(self.basis)} rows in {self.dim} dimensions")
        if self.num_videos < 1:
            raise ValueError("statistics are of at least one video")
        is_finite = np.isfinite(self.mean).all() and np.isfinite(self.basis).all()
        if not (is_finite and np.isfinite(self.residual) and self.residual >= 0):
            raise ValueError("statistics must be finite")

    @property
    def dim(self) -> int:
        return len(self.mean)

    @classmethod
    def of(cls, features: NDArray[np.floating[Any]], max_rank: int = MAX_RANK) -> DomainStatistics:
        """Of video features [n >= 1, D]."""
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or not len(x):
            raise ValueError(f"expected features of at least one video [n, D], got {list(x.shape)}")
        mean = x.mean(axis=0)
        return _truncated(mean, (x - mean) / np.sqrt(max(len(x) - 1, 1)), 0.0, len(x), max_rank)

    def add(self, feature: NDArray[np.floating[Any]], max_rank: int = MAX_RANK) -> DomainStatistics:
        """With one more video [D]. Exact (Welford 1962) but for the truncation to ``max_rank`` directions."""
        n = self.num_videos
        shift = np.asarray(feature, np.float64) - self.mean
        kept = (n - 1) / n
        basis = self.basis.astype(np.float64)
        variances = np.sum(basis**2, axis=1)
        # The residual is taken out of the basis, so that it is the same in all directions, and added again at the end.
        share = np.divide(
            np.maximum(variances - self.residual, 0.0), variances, out=np.zeros_like(variances), where=variances > 0
        )
        rows = np.concatenate([basis * np.sqrt(kept * share)[:, None], np.sqrt(1 / (n + 1)) * shift[None]])
        return _truncated(self.mean + shift / (n + 1), rows, kept * self.residual, n + 1, max_rank)

    def means(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """[V] of labels [V, D' >= D]; numbers behind the first D are ignored."""
        return self.moments(vectors)[0]

    def variances(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.moments(vectors)[1]

    def moments(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance of the similarity of labels [V, D' >= D] over the domain: [V] each.

        A label's results are the same to the last bit, whatever the other labels are: every inner product is computed
        alone, on rows of equal length at equal alignment, as in the label index.
        """
        mean, variance = np.empty(len(vectors)), np.empty(len(vectors))
        probes = _aligned(1 + len(self.basis), self.dim)  # the mean and the directions
        scales = np.linalg.norm(self.basis.astype(np.float64), axis=1)  # [r]
        probes[0, : self.dim] = self.mean
        probes[1:, : self.dim] = self.basis / np.maximum(scales, np.finfo(np.float32).tiny)[:, None]
        block = _aligned(min(_BLOCK_ROWS, len(vectors)), self.dim)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            rows = block[: min(_BLOCK_ROWS, len(vectors) - start)]
            stop = start + len(rows)
            rows[:, : self.dim] = vectors[start:stop, : self.dim]
            mean[start:stop] = np.vecdot(rows, probes[0])
            rest = np.vecdot(rows, rows).astype(np.float64)
            explained = np.zeros(len(rows))
            for probe, scale in zip(probes[1:], scales, strict=True):
                squares = np.vecdot(rows, probe).astype(np.float64) ** 2
                explained += squares * scale**2
                rest -= squares
            variance[start:stop] = explained + self.residual * np.maximum(rest, 0.0)
        return mean, variance

    def to_dict(self) -> dict[str, Any]:
        """JSON values; arrays as base64 of little-endian float32."""
        return {
            "num_videos": self.num_videos,
            "residual": self.residual,
            "mean": _to_base64(self.mean),
            "basis": _to_base64(self.basis),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DomainStatistics:
        """Raises KeyError, TypeError or ValueError."""
        mean = _from_base64(data["mean"])
        if not len(mean):
            raise ValueError("the mean is empty")
        basis = _from_base64(data["basis"])
        return cls(mean, basis.reshape(-1, len(mean)), float(data["residual"]), int(data["num_videos"]))

    def total_variance(self) -> float:
        """The trace of the covariance."""
        kept = float(np.sum(self.basis.astype(np.float64) ** 2))
        return kept + self.residual * (self.dim - len(self.basis))


def _truncated(
    mean: NDArray[np.float64], rows: NDArray[np.float64], floor: float, num_videos: int, max_rank: int
) -> DomainStatistics:
    """Of the covariance ``rows' rows + floor * identity``."""
    dim = len(mean)
    variances, directions = _principal(rows, max_rank)
    keep = len(variances)
    rest = max(0.0, float(np.sum(rows**2)) - float(variances.sum()))
    residual = floor + (rest / (dim - keep) if dim > keep else 0.0)
    basis = directions * np.sqrt(variances + floor)[:, None]
    return DomainStatistics(mean.astype(np.float32), basis.astype(np.float32), residual, num_videos)


def _principal(rows: NDArray[np.float64], max_rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest eigenvalues [r <= max_rank] of ``rows' rows``, and their directions [r, D]."""
    n, dim = rows.shape
    size = min(n, dim)
    if not size:
        return np.empty(0), np.empty((0, dim))
    gram = rows @ rows.T if n <= dim else rows.T @ rows
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:max_rank], vectors.T[::-1][:max_rank]
    keep = values > 1e-12 * max(float(np.trace(gram)), np.finfo(np.float64).tiny)
    values, vectors = values[keep], vectors[keep]
    return values, vectors if n > dim else (vectors @ rows) / np.sqrt(values)[:, None]


def _to_base64(values: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _from_base64(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)


def _aligned(num_rows: int, dim: int) -> NDArray[np.float32]:
    """Zeros [num_rows, D rounded up]; every row begins at a multiple of 64 bytes."""
    stride = -(-dim // _ALIGNED_FLOATS) * _ALIGNED_FLOATS
    raw = np.zeros(num_rows * stride * 4 + _ALIGNED_BYTES, np.uint8)
    offset = -raw.ctypes.data % _ALIGNED_BYTES
    return raw[offset : offset + num_rows * stride * 4].view(np.float32).reshape(num_rows, stride)
