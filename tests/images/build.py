"""Builds the project's image from a copy of the working tree, and looks at what it is made of."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from images.engine import Engine, EngineError, image_layers
from support.paths import ROOT

MIN_COMPONENTS = 70  # of the list of packages
CHANGED_FILE = "service/bounds.py"
ALLOWED_BY_PIP_CHECK = re.compile(r"torch \S+ requires triton, which is not installed\.")


@dataclass(frozen=True)
class Built:
    image: str
    seconds: float
    layers: list[tuple[str, int]]
    """Digest and bytes, the lowest first."""


def copy_tree(target: Path) -> None:
    """The files that git knows or would add, with their permissions."""
    shutil.rmtree(target, ignore_errors=True)
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        source = ROOT / name
        if name and (source.is_file() or source.is_symlink()):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def build(engine: Engine, source: Path, target: str, image: str, *, log: Path) -> Built:
    began = time.monotonic()
    words = ["build", "--progress=plain", "-f", engine.path(source / "docker/Dockerfile"), "--target", target]
    if engine.is_made:
        words += ["--network", "host"]
    engine.run(*words, "-t", image, engine.path(source), log=log)
    return Built(image, round(time.monotonic() - began, 1), list(image_layers(engine, image)))


def change_one_line(source: Path) -> None:
    path = source / CHANGED_FILE
    path.write_text(path.read_text() + "\n_BUILD = 2\n")


def examine(engine: Engine, image: str) -> dict[str, str]:
    """Facts of the image. Raises EngineError if its user cannot read a file, or it contains what it should not."""
    script = (
        "id; echo ==; find /opt /usr/share/doc/vidlex ! -readable 2>&1; echo ==; "
        "du -sm /opt/vidlex/cache /opt/vidlex/lib/python3.*/site-packages/* | sort -rn | head -8; echo ==; "
        "for name in pip pip3 gcc cc c++ ld as nvcc ptxas; do command -v $name; done; "
        "ls -d /opt/vidlex/lib/python3.*/site-packages/triton /opt/vidlex/lib/python3.*/site-packages/pytest "
        "/usr/local/lib/python3.*/site-packages/pip 2>/dev/null; echo ==; getent passwd 10001; echo ==; "
        "ls -s /usr/share/doc/vidlex; echo ==; python -c 'import json; "
        'print(len(json.load(open("/usr/share/doc/vidlex/sbom.cdx.json"))["components"]))\''
    )
    words = ["run", "--rm", "--network", "none", "--read-only", "--entrypoint", "sh", image, "-c", script]
    parts = [part.strip() for part in engine.run(*words).split("==")]
    user, unreadable, largest, unwanted, entry, documents, num_components = parts
    if unreadable or unwanted:
        raise EngineError(f"the image's user cannot read {unreadable!r}; the image contains {unwanted!r}")
    if "vidlex" not in entry or "sbom.cdx.json" not in documents:
        raise EngineError(f"passwd entry {entry!r}, documents {documents!r}")
    if int(num_components) < MIN_COMPONENTS:
        raise EngineError(f"the list of packages has {num_components} entries")
    labels = engine.run("image", "inspect", image, "--format", "{{json .Config.Labels}}")
    return {"user": user, "largest folders in MB": largest.replace("\t", " "), "labels": labels}
