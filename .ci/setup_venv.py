"""Make a virtual environment that fits requirements.lock, or keep the one that does.

Standard library only: it runs before anything is installed. Safe to run twice (a stamp holds the hash of what was
installed), at the same time as another run (a file lock), and after an interruption (an unfinished environment is
made anew, because pip cannot tell a half-copied package from a whole one).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = "vidlex-installed.sha256"
UNFINISHED = "vidlex-unfinished"
MIN_PYTHON = (3, 11)


def wanted_stamp() -> str:
    """Hash of everything the installation depends on, the place of this checkout included (it is editable)."""
    digest = hashlib.sha256()
    for part in (str(ROOT).encode(), *((ROOT / name).read_bytes() for name in ("requirements.lock", "pyproject.toml"))):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)


def fits(venv: Path) -> bool:
    stamp = venv / STAMP
    python = venv / "bin" / "python"
    if (venv / UNFINISHED).exists() or not stamp.exists() or stamp.read_text().strip() != wanted_stamp():
        return False
    return subprocess.run([str(python), "-c", "pass"], check=False, capture_output=True).returncode == 0


def install(venv: Path) -> None:
    python, unfinished, stamp = venv / "bin" / "python", venv / UNFINISHED, venv / STAMP
    if not python.exists() or unfinished.exists():
        print(f"Making a virtual environment in {venv} ...", flush=True)
        # --clear only for what this script left unfinished: a folder of someone else's is never emptied.
        run(sys.executable, "-m", "venv", *(["--clear"] if unfinished.exists() else []), venv)
    stamp.unlink(missing_ok=True)
    unfinished.write_text("An installation began and did not end; the next `make` starts afresh.\n")
    pip = (python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input")
    print("Installing the pinned packages (about 5 GB on Linux: PyTorch brings CUDA along; once only) ...", flush=True)
    run(*pip, "--no-deps", "-r", ROOT / "requirements.lock")
    run(*pip, "--no-deps", "--quiet", "--no-build-isolation", "-e", ROOT)
    run(python, "-m", "pip", "check", "--disable-pip-version-check")
    stamp.write_text(wanted_stamp() + "\n")
    unfinished.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    venv = parser.parse_args().venv.absolute()
    if sys.version_info < MIN_PYTHON:
        print(f"Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer is needed, this is {sys.version.split()[0]}.")
        return 1
    if fits(venv):
        return 0
    if venv.exists() and any(venv.iterdir()) and not ((venv / "pyvenv.cfg").exists() or (venv / UNFINISHED).exists()):
        print(f"{venv} exists and is not a virtual environment; name another with VENV=path.")
        return 1
    venv.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    lock_name = f"vidlex-setup-{hashlib.sha256(str(venv).encode()).hexdigest()[:16]}.lock"
    with (Path(tempfile.gettempdir()) / lock_name).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not fits(venv):  # another run may have finished it while this one waited
            install(venv)
            print(f"The environment is ready ({time.monotonic() - started:.0f} s).", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        print(f"Setting up failed: `{' '.join(error.cmd)}` ended with status {error.returncode}.", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
