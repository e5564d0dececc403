"""Debian folders, made by debootstrap, which need not be installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_POLICY = "#!/bin/sh\nexit 101\n"  # packages start no services
_APT = 'Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n'


def make_rootfs(folder: Path, suite: str, first: Sequence[str], more: Sequence[str]) -> None:
    """``first`` are unpacked by debootstrap, ``more`` installed by apt. Once: a folder that is complete is kept."""
    if (folder / ".done").exists():
        return
    print(f"  {folder.name}: Debian {suite}", flush=True)
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        words, environment = _debootstrap(folder.parent)
        command = [*words, "--variant=minbase", f"--include={','.join(first)}", suite, str(folder), mirror()]
        subprocess.run(["nice", *command], env=environment, stdout=log, stderr=log, check=True)
        (folder / "etc/apt/apt.conf.d/99check").write_text(_APT)
        policy = folder / "usr/sbin/policy-rc.d"
        policy.write_text(_POLICY)
        policy.chmod(0o755)
        shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
        if more:
            install = f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {' '.join(more)}"
            environment = dict(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(["nice", "chroot", folder, "sh", "-c", install], env=environment, stdout=log, stderr=log,
                           check=True)  # fmt: skip
    for place in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(folder / place, ignore_errors=True)
    (folder / ".done").touch()


def mirror() -> str:
    """The Debian mirror that this machine uses, or the usual one."""
    if shutil.which("apt-get"):
        done = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True, check=False
        )
        for line in done.stdout.splitlines():
            if "debian" in line and "security" not in line:
                return line
    return "http://deb.debian.org/debian"


def _debootstrap(work: Path) -> tuple[list[str], dict[str, str]]:
    """Its command, downloaded into ``work`` where it is not installed."""
    environment = dict(os.environ)
    found = shutil.which("debootstrap")
    if found:
        return [found], environment
    folder = work / "debootstrap"
    if not (folder / "usr/sbin/debootstrap").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", "debootstrap"], cwd=folder, check=True, capture_output=True)
        (package,) = folder.glob("debootstrap_*.deb")
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    environment["DEBOOTSTRAP_DIR"] = str(folder / "usr/share/debootstrap")
    return [str(folder / "usr/sbin/debootstrap")], environment
