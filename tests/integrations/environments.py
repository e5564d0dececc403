"""A virtual environment per program: their requirements contradict each other and those of Vidlex."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def environment(folder: Path, requirement: str) -> Path:
    """The Python of an environment with this package, made on the first call."""
    home = folder / requirement.replace("==", "-")
    python, marker = home / "bin" / "python", home / "complete"
    if not marker.exists():
        print(f"installing {requirement}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
        marker.touch()
    return python
