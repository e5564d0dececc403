"""The engines of `vidlex tag`, opened from its options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vidlex.service.bounds import MAX_CANDIDATES
from vidlex.service.bulk.engine import BusyShares, EngineIdentity, TagEngine
from vidlex.service.bulk.fetch import Fetcher
from vidlex.service.bulk.options import TagOptions
from vidlex.service.bulk.run import KnownResults, Tagged, run_numbered
from vidlex.service.bulk.source import VideoSource
from vidlex.service.commands.connection import command_error
from vidlex.service.commands.extras import require
from vidlex.service.commands.output import EXIT_UNREACHABLE, EXIT_USAGE, CommandError, progress

if TYPE_CHECKING:
    from vidlex.service.bulk.local.setup import LocalSetup

EngineName = Literal["local", "service", "ray"]
# Ray gives each encoder its GPU.
_RAY_DEVICES: dict[str | None, Literal["auto", "cpu", "cuda"]] = {
    None: "auto",
    "auto": "auto",
    "cpu": "cpu",
    "cuda": "cuda",
    "cuda:all": "cuda",
}


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """What the command line says of the engine."""

    name: EngineName
    labels: tuple[str, ...] | None
    labels_file: Path | None
    namespace: str | None
    model: str | None
    device: str | None
    decode_workers: int | None
    data_dir: Path | None
    url: str
    jobs: int
    address: str | None

    def check(self, options: TagOptions) -> None:
        """Raises CommandError for options that do not go together."""
        if sum(given is not None for given in (self.labels, self.labels_file, self.namespace)) > 1:
            raise CommandError("give --labels, --label or --namespace, and one of them only", exit_code=EXIT_USAGE)
        if self.name == "service":
            for flag, given in (("--model", self.model), ("--device", self.device), ("--data-dir", self.data_dir)):
                if given is not None:
                    raise CommandError(f"{flag} is that of the service with --engine service", exit_code=EXIT_USAGE)
            if options.features:
                raise CommandError("--features needs --engine local or ray", exit_code=EXIT_USAGE)
        elif options.keep:
            raise CommandError("--keep needs --engine service", exit_code=EXIT_USAGE)
        if self.address is not None and self.name != "ray":
            raise CommandError("--address needs --engine ray", exit_code=EXIT_USAGE)
        if self.name == "ray" and self.device not in _RAY_DEVICES:
            raise CommandError("--device is auto, cpu or cuda with --engine ray", exit_code=EXIT_USAGE)


@dataclass(frozen=True)
class OpenEngine:
    identity: EngineIdentity
    busy: Callable[[], BusyShares | None]
    close: Callable[[], object]
    run: Callable[[Iterable[VideoSource], TagOptions, KnownResults, Fetcher], Iterator[Tagged]]


def open_engine(choice: EngineChoice) -> OpenEngine:
    """Raises CommandError, VidlexError, ModuleNotFoundError."""
    return {"local": _open_local, "service": _open_service, "ray": _open_ray}[choice.name](choice)


def _of(engine: TagEngine, close: Callable[[], object]) -> OpenEngine:
    def run(
        sources: Iterable[VideoSource], options: TagOptions, known: KnownResults, fetcher: Fetcher
    ) -> Iterator[Tagged]:
        return run_numbered(sources, engine, options, known=known, fetcher=fetcher)

    return OpenEngine(engine.identity, engine.busy, close, run)


def _open_local(choice: EngineChoice) -> OpenEngine:
    setup = _setup(choice)
    from vidlex.service.bulk.local.opening import open_engine as open_local

    with progress("loading the model", total=None) as bar:
        engine = open_local(setup, on_progress=_shown(bar))
    return _of(engine, engine.close)


def _open_ray(choice: EngineChoice) -> OpenEngine:
    require("ray", "pandas")
    # The labels are encoded on this machine, which may have no GPU.
    setup = _setup(replace(choice, device="cpu" if choice.device == "cpu" else None, decode_workers=None))
    from vidlex.service.cluster.engine import ClusterEngine
    from vidlex.service.cluster.tagging import ClusterLayout

    # Each worker has a decode process.
    layout = ClusterLayout(max_workers=choice.decode_workers, device=_RAY_DEVICES[choice.device])
    try:
        with progress("starting on the cluster", total=None) as bar:
            engine = ClusterEngine(setup, address=choice.address, layout=layout, on_progress=_shown(bar))
    except ValueError as error:
        raise CommandError(str(error)) from None
    except ConnectionError:
        where = f"at {choice.address}" if choice.address else "on this machine"
        raise CommandError(f"no Ray cluster {where}", exit_code=EXIT_UNREACHABLE) from None

    def run(
        sources: Iterable[VideoSource], options: TagOptions, known: KnownResults, fetcher: Fetcher
    ) -> Iterator[Tagged]:
        return engine.run_numbered(sources, options, known=known, fetcher=fetcher)

    return OpenEngine(engine.identity, engine.busy, engine.close, run)


def _shown(bar: Any) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        bar.update(bar.task_ids[0], description="encoding labels", completed=done, total=total)

    return show


def _setup(choice: EngineChoice) -> LocalSetup:
    """Settings and model are checked before PyTorch is imported."""
    require("torch", "structlog", "av", "numpy", "redis")
    from vidlex.service.commands.preflight import require_model, settings_or_error

    given: dict[str, Any] = {
        "model": choice.model,
        "device": choice.device,
        "decode_workers": choice.decode_workers,
        "data_dir": choice.data_dir,
    }
    settings = settings_or_error(**{name: value for name, value in given.items() if value is not None})
    require_model(settings.model)
    from vidlex.service.bulk.local.setup import LocalSetup

    namespace = choice.namespace
    if choice.labels is None and choice.labels_file is None and namespace is None:
        namespace = settings.namespace
    return LocalSetup(labels=choice.labels, labels_file=choice.labels_file, namespace=namespace, **given)


def _open_service(choice: EngineChoice) -> OpenEngine:
    from vidlex.service.client.client import Client
    from vidlex.service.client.config import RetryPolicy
    from vidlex.service.client.engine import ServiceEngine
    from vidlex.service.client.errors import VidlexClientError

    candidates = _candidates(choice)
    try:
        client = Client(choice.url, namespace=choice.namespace, retries=RetryPolicy(connect_seconds=0.0))
        engine = ServiceEngine(client, candidate_labels=candidates, concurrency=choice.jobs)
    except VidlexClientError as error:
        raise command_error(error) from None
    return _of(engine, client.close)


def _candidates(choice: EngineChoice) -> list[str] | None:
    """Names only: a service keeps thresholds and categories of labels that it stores."""
    if choice.labels_file is None:
        return None if choice.labels is None else list(choice.labels)
    from vidlex.service.labels.files import format_of, opened, read

    with opened(choice.labels_file) as stream:
        entries = list(read(stream, format_of(choice.labels_file, None)))
    if any(set(entry) - {"name"} for entry in entries) or len(entries) > MAX_CANDIDATES:
        raise CommandError(
            f"{choice.labels_file}: a service scores at most {MAX_CANDIDATES} labels, by name only, that it does not "
            "store; register them with `vidlex labels import`, and use --namespace",
            exit_code=EXIT_USAGE,
        )
    return [str(entry["name"]) for entry in entries]
