"""Make a virtual environment that fits requirements.lock, or keep the one that does.

Standard library only: it runs before anything is installed. Safe to run twice (a stamp holds the hash of what was
installed), at the same time as another run (a file lock), and after an interruption (an unfinished environment is
made again, because pip cannot tell a half-copied package from a whole one).

Prints one line per stage; the output of pip is in ``setup.log`` in the environment's folder.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
STAMP = "vidlex-installed.sha256"
UNFINISHED = "vidlex-unfinished"
LOG = "setup.log"
MIN_PYTHON = (3, 11)
DEVELOPMENT = "# --- development"
"""In requirements.lock: the packages below are needed by `make test` and `make lint` only."""
NUM_LOG_LINES = 20
"""Printed when a stage fails."""
_PACKAGE = re.compile(r"(?:Collecting|Processing) (\S+)")


def wanted_stamp(*, dev: bool) -> str:
    """Hash of everything the installation depends on, the place of this checkout included (it is editable)."""
    digest = hashlib.sha256()
    for part in (str(ROOT).encode(), LOCK.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), b"dev" * dev):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def run(*command: str | Path, log: Path, each_line: Callable[[str], None] = lambda _: None) -> None:
    """Run a command with its output in ``log``. Raises CalledProcessError."""
    words = [str(word) for word in command]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(words)}\n")
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            each_line(line)
    if process.wait() != 0:
        raise subprocess.CalledProcessError(process.returncode, words)


def fits(venv: Path, *, dev: bool) -> bool:
    """Whether the environment has what is needed; one with the development packages always has."""
    stamp = venv / STAMP
    if (venv / UNFINISHED).exists() or not stamp.exists():
        return False
    if stamp.read_text().strip() not in {wanted_stamp(dev=True), wanted_stamp(dev=dev)}:
        return False
    return subprocess.run([venv / "bin" / "python", "-c", "pass"], check=False, capture_output=True).returncode == 0


def pins(*, dev: bool) -> list[str]:
    lines = LOCK.read_text(encoding="utf-8").partition(DEVELOPMENT)
    return [line for line in (lines[0] + lines[2] * dev).splitlines() if re.match(r"[a-z0-9]", line)]


def install(venv: Path, *, dev: bool) -> None:
    python, unfinished, stamp, log = (venv / name for name in ("bin/python", UNFINISHED, STAMP, LOG))
    if not python.exists() or unfinished.exists():
        # --clear only for what this script left unfinished: a folder of someone else's is never emptied.
        clear = ["--clear"] if unfinished.exists() else []
        print(f"Creating a virtual environment in {venv}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run(sys.executable, "-m", "venv", *clear, venv, log=Path(folder) / LOG)
    stamp.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    unfinished.write_text("The installation was interrupted; the next `make` starts again.\n")
    packages = pins(dev=dev)
    pip = (python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar=off")
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.lock"
        requirements.write_text("\n".join(packages) + "\n", encoding="utf-8")
        title = f"Downloading and installing {len(packages)} pinned packages (about 5 GB with CUDA, once)"
        run(*pip, "--no-deps", "-r", requirements, log=log, each_line=Progress(title, len(packages)))
    print("Installing vidlex from this checkout", flush=True)
    run(*pip, "--no-deps", "--no-build-isolation", "-e", ROOT, log=log)
    run(python, "-m", "pip", "check", "--disable-pip-version-check", log=log)
    stamp.write_text(wanted_stamp(dev=dev) + "\n")
    unfinished.unlink()


class Progress:
    """Counts packages in pip's output: one line, updated in place on a terminal."""

    def __init__(self, title: str, num_packages: int) -> None:
        self._title, self._num_packages = title, num_packages
        self._names: set[str] = set()
        self._is_terminal = sys.stdout.isatty()
        self._print("" if self._is_terminal else "\n")

    def __call__(self, line: str) -> None:
        found = _PACKAGE.match(line.strip())
        if found:
            self._names.add(found[1])
            if self._is_terminal:
                self._print(f": {len(self._names)}/{self._num_packages}")
        if line.startswith("Installing collected packages") and self._is_terminal:
            self._print(": downloaded, now unpacking (a minute or two)\n")

    def _print(self, end: str) -> None:
        print(f"\r\033[K{self._title}{end}" if self._is_terminal else f"{self._title}{end}", end="", flush=True)


def last_lines(log: Path) -> Iterable[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-NUM_LOG_LINES:] if log.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    parser.add_argument("--dev", action="store_true", help="also install what `make test` and `make lint` need")
    options = parser.parse_args()
    venv, dev = options.venv.absolute(), options.dev
    if sys.version_info < MIN_PYTHON:
        print(f"Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer is needed, this is {sys.version.split()[0]}.")
        return 1
    if fits(venv, dev=dev):
        return 0
    if venv.exists() and any(venv.iterdir()) and not ((venv / "pyvenv.cfg").exists() or (venv / UNFINISHED).exists()):
        print(f"{venv} exists and is not a virtual environment; name another one with VENV=path.")
        return 1
    venv.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    lock_name = f"vidlex-setup-{hashlib.sha256(str(venv).encode()).hexdigest()[:16]}.lock"
    with (Path(tempfile.gettempdir()) / lock_name).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not fits(venv, dev=dev):  # another run may have finished it in the meantime
            try:
                install(venv, dev=dev)
            except subprocess.CalledProcessError as error:
                print("", *last_lines(venv / LOG), sep="\n", file=sys.stderr)
                print(f"Set-up failed: `{' '.join(error.cmd)}` ended with status {error.returncode}.", file=sys.stderr)
                print(f"The full output is in {venv / LOG}.", file=sys.stderr)
                return 1
            print(f"The environment is ready ({time.monotonic() - started:.0f} s; log: {venv / LOG}).", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
