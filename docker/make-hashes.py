"""Writes docker/hashes.txt: sha256 of the wheels that pip chooses for requirements.lock, Linux x86-64, Python 3.12.

    python3.12 docker/make-hashes.py

Only the wheels' metadata is downloaded. Run it after each change of requirements.lock. torch and torchvision of the cpu
image come from PyTorch's own index, whose builds have other digests; those are not checked.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = (3, 12)


def main() -> int:
    if sys.version_info[:2] != PYTHON:
        print(f"the images run Python {PYTHON[0]}.{PYTHON[1]}; run this script with it", file=sys.stderr)
        return 2
    runtime = (HERE.parent / "requirements.lock").read_text(encoding="utf-8").partition("# --- development")[0]
    pins = [line for line in runtime.splitlines() if re.match(r"[a-z0-9]", line)]
    with tempfile.TemporaryDirectory() as folder:
        listed, report = Path(folder) / "pins.txt", Path(folder) / "report.json"
        listed.write_text("\n".join(pins) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--only-binary=:all:", "--report", report, "-r", listed], check=True)
        chosen = json.loads(report.read_text(encoding="utf-8"))["install"]
    lines = []
    for package in chosen:
        name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={package['metadata']['version']} sha256:{digest}")
    (HERE / "hashes.txt").write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")
    print(f"{len(lines)} digests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
