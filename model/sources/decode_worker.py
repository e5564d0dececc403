"""The decode process of training: ``python -m vidlex.model.sources.decode_worker PARENT_PID``.

Reads one JSON request per line from standard input, and writes one JSON line to standard output for each, followed by
the bytes of the frames if there is no error. It dies with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

MAX_MEMORY_BYTES = 8 * 2**30  # address space
_PR_SET_PDEATHSIG = 1


def main() -> None:
    _die_with_parent(int(sys.argv[1]))
    for kind, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_AS, MAX_MEMORY_BYTES)):
        with contextlib.suppress(ValueError, OSError):  # a stricter limit applies already
            resource.setrlimit(kind, (value, value))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # native libraries may print there
    from vidlex.model.sources.augmentation import Augmentation, read_frames
    from vidlex.model.types import FrameGeometry

    _send(out, {"ready": True})
    for line in sys.stdin.buffer:
        request: dict[str, Any] = json.loads(line)
        augmentation = request["augmentation"]
        try:
            frames = read_frames(
                Path(request["path"]),
                geometry=FrameGeometry(request["image_size"], request["resize_mode"]),
                num_frames=request["num_frames"],
                start_ms=request["start_ms"],
                end_ms=request["end_ms"],
                augmentation=augmentation and Augmentation(**augmentation),
            )
        except Exception as error:  # whatever is wrong with the file, the next one may be good
            _send(out, {"error": f"{type(error).__name__}: {error}"[:500]})
        else:
            _send(out, {"num_bytes": frames.nbytes}, frames.data.cast("B"))


def _die_with_parent(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C in the terminal
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call of prctl
        raise SystemExit(0)


def _send(out: Any, message: dict[str, Any], content: memoryview | None = None) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    if content is not None:
        out.write(content)
    out.flush()


if __name__ == "__main__":
    main()
