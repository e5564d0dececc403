"""Kept videos for tests: what they are made of, and a process that keeps them until it is killed."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from vidlex.service.labels.store.redis_types import Guard, accept_any
from vidlex.service.videos.records import KeptSegment, NewKeptVideo
from vidlex.service.videos.store import KeptVideoStore, VideoLimits

NAMESPACE = "team"
FINGERPRINT = "encoder-1"
DIM = 8
NO_LIMITS = VideoLimits(2**40, None)


def kept_store(
    client: redis.Redis, folder: Path, limits: VideoLimits = NO_LIMITS, *, guard: Guard = accept_any
) -> KeptVideoStore:
    return KeptVideoStore(client, folder / "videos", limits, guard=guard)


def new_video(name: str, **fields: Any) -> NewKeptVideo:
    known: dict[str, Any] = {
        "namespace": NAMESPACE,
        "client": "key_1",
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "sampling": {"num_frames": 8, "frame_policy": "uniform"},
        "facts": {"duration_ms": 4000, "codec": "h264", "fps": 24.0},
        "receipt": {"decoder": "PyAV", "model": "dummy"},
    }
    return NewKeptVideo(**known | fields)


def segments_of(count: int) -> list[KeptSegment]:
    return [KeptSegment(1000 * i, 1000 * (i + 1)) for i in range(count)]


def vectors_of(name: str, count: int = 3, dim: int = DIM) -> NDArray[np.float32]:
    """Unit vectors that depend on the arguments only."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {count} {dim}".encode()).digest()[:8], "big")
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def keep(store: KeptVideoStore, name: str, *, fingerprint: str = FINGERPRINT, count: int = 3, **fields: Any) -> str:
    """The id. Features depend on the name, the encoder and ``count``."""
    vectors = vectors_of(f"{name} {fingerprint}", count)
    return store.keep(new_video(name, **fields), fingerprint, segments_of(count), vectors).id


def stored_vectors(name: str, *, fingerprint: str = FINGERPRINT, count: int = 3) -> NDArray[np.float16]:
    return vectors_of(f"{name} {fingerprint}", count).astype(np.float16)


def table_of(store: KeptVideoStore, fingerprint: str = FINGERPRINT) -> dict[str, NDArray[np.float16]]:
    """Id -> vectors, as a scan sees them."""
    table = store.table(NAMESPACE, fingerprint)
    found: dict[str, list[NDArray[np.float16]]] = {}
    for block in table.blocks(max_segments=7):
        for row, vector in zip(table.video_ids(block.video_rows.tolist()), block.vectors, strict=True):
            found.setdefault(row, []).append(vector.copy())
    return {video_id: np.stack(vectors) for video_id, vectors in found.items()}


def _keep_for_ever(socket: str, folder: str, first: int) -> None:
    """Prints a line of JSON after each acknowledgement."""
    store = kept_store(redis.Redis(unix_socket_path=socket), Path(folder))
    number = first
    while True:
        name = f"video {number}"
        video_id = keep(store, name, count=1 + number % 5, client_id=str(number))
        print(json.dumps({"id": video_id, "number": number}), flush=True)
        if number % 4 == 3:
            store.remove(NAMESPACE, video_id)
            print(json.dumps({"removed": video_id}), flush=True)
        number += 1


if __name__ == "__main__":
    _keep_for_ever(sys.argv[1], sys.argv[2], int(sys.argv[3]))
