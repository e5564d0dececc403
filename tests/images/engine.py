"""A container engine: Docker as it is found, or one made in a folder from Debian packages.

The made one is dockerd in a Debian folder, in mount, process and (to run containers) network namespaces of its own.
Nothing is installed on the host. It needs root.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from images.rootfs import make_rootfs

SUITE = "trixie"
PACKAGES = "docker.io docker-cli docker-compose docker-buildx iptables iproute2 procps"
START_SECONDS = 60
_CLONE_NEWNET = 0x40000000
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Run as the first process of the new namespaces: makes the Debian folder the root and becomes dockerd.
_INIT = """set -e
mount --make-rprivate /; mount --bind {root} {root}
mount -t proc proc {root}/proc; mount --rbind /sys {root}/sys; mount --rbind /dev {root}/dev
mount -t tmpfs tmpfs {root}/run; mount -t tmpfs tmpfs {root}/tmp
mkdir -p {root}/old {root}/trial; mount --bind {work} {root}/trial
cd {root}; pivot_root . old; umount -l /old; cd /
ip link set lo up 2>/dev/null || true; echo 1 >/proc/sys/net/ipv4/ip_forward 2>/dev/null || true
exec env -i HOME=/root PATH={path} dockerd {options} -H unix:///run/docker.sock --data-root /var/lib/docker
"""


class EngineError(RuntimeError):
    pass


class Engine:
    """Docker of this machine. ``work`` is the folder whose files commands may name."""

    is_made = False

    def __init__(self, work: Path) -> None:
        self.work = work

    def words(self, *arguments: str) -> list[str]:
        return ["docker", *arguments]

    def enter_network(self) -> None:
        """Lets this thread reach published ports."""

    def path(self, path: Path) -> str:
        """``path`` as the engine names it."""
        return str(path)

    def start(self, *, can_reach_out: bool) -> None:
        pass

    def stop(self) -> None:
        pass

    def run(self, *arguments: str, check: bool = True, log: Path | None = None, both: bool = False) -> str:
        """Standard output of a docker command, with standard error if ``both``; with ``log``, both go there."""
        return _run(self.words(*arguments), f"docker {' '.join(arguments)}", check=check, log=log, both=both)

    def shell(self, command: str) -> str:
        """Standard output of a shell command, which calls docker."""
        return _run([*self.words()[:-1], "sh", "-c", command], command, check=True, log=None, both=False)

    def run_script(self, script: Path, *arguments: str, folder: Path) -> str:
        """Both outputs of a shell script of the project, which calls docker in ``folder``."""
        words = [*self.words()[:-1], "sh", "-c", 'cd "$1" && shift && exec sh "$@"', "sh", self.path(folder)]
        return _run([*words, self.path(script), *arguments], script.name, check=True, log=None, both=True)


class MadeEngine(Engine):
    is_made = True

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.root = work / "engine"
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def words(self, *arguments: str) -> list[str]:
        enter = ["nsenter", "-t", str(self._pid), "-m", "-n", "-p", "-r", "-w"]
        return [*enter, "env", "-i", "HOME=/root", "TERM=dumb", f"PATH={_PATH}", "docker", *arguments]

    def enter_network(self) -> None:
        with Path(f"/proc/{self._pid}/ns/net").open() as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise EngineError(f"setns: {os.strerror(ctypes.get_errno())}")

    def path(self, path: Path) -> str:
        return f"/trial/{path.relative_to(self.work)}"

    def start(self, *, can_reach_out: bool) -> None:
        """``can_reach_out``: in this machine's network, to build; else in one of its own, to run containers."""
        self.stop()
        make_rootfs(self.root, SUITE, ["ca-certificates"], PACKAGES.split())
        for name in ("run/docker.pid", "var/run/docker.pid"):
            (self.root / name).unlink(missing_ok=True)
        (self.root / "old").mkdir(exist_ok=True)
        options = "--iptables=false --bridge=none" if can_reach_out else ""
        script = _INIT.format(root=self.root, work=self.work, path=_PATH, options=options)
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *([] if can_reach_out else ["--net"])]
        with (self.work / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["nice", *words, "bash", "-c", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            time.sleep(0.5)
            found = subprocess.run(
                ["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=False
            ).stdout.split()
            if found:
                self._pid = int(found[0])
                if subprocess.run(self.words("info"), capture_output=True, check=False).returncode == 0:
                    return
        tail = (self.work / "dockerd.log").read_text(errors="replace")[-2000:]
        raise EngineError(f"dockerd did not start within {START_SECONDS} s\n{tail}")

    def stop(self) -> None:
        if self._process is None:
            return
        if self._pid:
            os.kill(self._pid, signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process, self._pid = None, 0


def _run(words: list[str], shown: str, *, check: bool, log: Path | None, both: bool) -> str:
    if log is not None:
        with log.open("w") as file:
            status = subprocess.run(words, stdout=file, stderr=file, check=False).returncode
        output = message = log.read_text(errors="replace")
    else:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        status, message = done.returncode, done.stdout[-2000:] + done.stderr
        output = done.stdout + (done.stderr if both else "")
    if check and status != 0:
        raise EngineError(f"{shown}: status {status}\n{message[-4000:]}")
    return output.strip()


def find_engine(work: Path) -> Engine:
    """Docker with Compose if one answers (DOCKER_HOST counts), else one to be made. Raises EngineError."""
    for words in (["docker", "info"], ["docker", "compose", "version"]):
        if shutil.which("docker") is None or subprocess.run(words, capture_output=True, check=False).returncode != 0:
            break
    else:
        print("engine: docker of this machine", flush=True)
        return Engine(work)
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        raise EngineError("no Docker with Compose answers, and making an engine needs root on Linux")
    print(f"engine: none answers; one is made in {work / 'engine'} from Debian packages", flush=True)
    return MadeEngine(work)


def image_layers(engine: Engine, image: str) -> Sequence[tuple[str, int]]:
    """Digest and bytes of each layer that is not empty, the lowest first."""
    digests = engine.run("image", "inspect", image, "--format", "{{range .RootFS.Layers}}{{.}} {{end}}").split()
    lines = engine.run("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", image)
    sizes = [int(line.split("\t")[0]) for line in reversed(lines.splitlines()) if makes_layer(line)]
    return list(zip(digests, sizes, strict=False)) if len(digests) == len(sizes) else [(d, -1) for d in digests]


def makes_layer(line: str) -> bool:
    size, _, made_by = line.partition("\t")
    return int(size) > 0 or made_by.startswith(("COPY", "RUN", "ADD", "WORKDIR"))
