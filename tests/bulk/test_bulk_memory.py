"""Memory does not grow with the number of rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.bulk_runs import write_files
from support.paths import TESTS

# One process: a short run first, whose memory the allocators keep, then one of five times as many rows.
CODE = """
import json, resource, sys
from pathlib import Path
from support.bulk_runs import FakeEngine, tag_into
from vidlex.service.bulk import output
from vidlex.service.bulk.options import TagOptions

output.GROUP_ROWS = output.CHECKPOINT_ROWS = 200
peaks = []
for name in ("short", "long"):
    engine = FakeEngine(num_labels=20, dim=64)
    options = TagOptions(segments=True, features=True)
    out = f"{sys.argv[1]}/{name}.parquet"
    tag_into(out, [f"{sys.argv[1]}/{name}"], engine, options=options, checkpoint_rows=200, keep=False)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""
NUM_ROWS = 800
MAX_GROWTH_BYTES = 20 << 20  # of 3,200 further rows, which take 100 MB as Python objects


def test_memory_is_flat(tmp_path: Path) -> None:
    for name, number in (("short", NUM_ROWS), ("long", 5 * NUM_ROWS)):
        write_files(tmp_path / name, number)
    environment = os.environ | {"PYTHONPATH": str(TESTS), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    short, long = (1024 * peak for peak in json.loads(done.stdout))
    assert long - short < MAX_GROWTH_BYTES, f"from {short >> 20} to {long >> 20} MiB"
