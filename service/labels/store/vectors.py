"""A label's vector as bytes: D little-endian float32, then their CRC-32."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CHECKSUM = struct.Struct("<I")


class VectorCorrupt(Exception):
    """Wrong length or checksum. The label counts as not encoded."""


def check_vector(vector: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(vector, dtype=np.float32)
    if array.ndim != 1 or array.shape[0] < 1:
        raise ValueError(
            f"a label's vector must have one dimension and at least one number, got shape {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ValueError("a label's vector must be finite")
    return array


def encode_vector(vector: NDArray[np.float32]) -> bytes:
    data = np.ascontiguousarray(vector, dtype="<f4").tobytes()
    return data + _CHECKSUM.pack(zlib.crc32(data))


def decode_vector(raw: bytes, dim: int) -> NDArray[np.float32]:
    """The [D] vector, read-only. Raises VectorCorrupt."""
    if len(raw) != 4 * dim + _CHECKSUM.size:
        raise VectorCorrupt(f"{len(raw)} bytes stored for a vector of {dim} numbers")
    data = memoryview(raw)[: 4 * dim]
    (checksum,) = _CHECKSUM.unpack_from(raw, 4 * dim)
    if zlib.crc32(data) != checksum:
        raise VectorCorrupt("the checksum of a stored vector does not match its bytes")
    return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
