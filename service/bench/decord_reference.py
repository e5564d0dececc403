"""decord, a reader that others use: a reference of the benchmarks, installed with the extra `dev`.

Vidlex does not read with it: its frames carry no time stamps, so that a wrong one cannot be noticed.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any


@cache
def load_decord() -> Any:
    # decord loads all installed CUDA libraries (600 MB of memory), which decoding on the CPU does not need, and can
    # crash torch on machines without a GPU: hide them
    hidden = sys.modules.get("nvidia")
    sys.modules["nvidia"] = None  # type: ignore[assignment]
    try:
        import decord
    finally:
        if hidden is None:
            del sys.modules["nvidia"]
        else:
            sys.modules["nvidia"] = hidden
    decord.logging.set_level(decord.logging.QUIET)
    return decord
