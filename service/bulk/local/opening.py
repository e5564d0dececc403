"""Opens an engine in this process: loads the model, encodes the labels, starts the decode processes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack

import structlog

from vidlex.model.specs import check_spec
from vidlex.service.bulk.local.encoder import LocalEncoder
from vidlex.service.bulk.local.engine import LocalEngine
from vidlex.service.bulk.local.setup import LocalSetup
from vidlex.service.bulk.local.snapshot import Snapshot, snapshot_of_labels, snapshot_of_namespace
from vidlex.service.bulk.local.vocabulary import labels_of_file, labels_of_names, read_namespace
from vidlex.service.decode.limits import pool_limits
from vidlex.service.engine.limits import engine_limits
from vidlex.service.machine.cpus import num_cpus
from vidlex.service.registration.label_cache import LabelCache
from vidlex.service.settings import Settings

OnProgress = Callable[[int, int], None]  # labels encoded, of how many


def open_engine(setup: LocalSetup, *, on_progress: OnProgress = lambda done, total: None) -> LocalEngine:
    """``on_progress`` is called while labels are encoded.

    Raises SettingsError, what ``load_classifier`` raises for the model, InvalidParameter, NotFound or StoreUnavailable
    for the labels, LabelTextInvalid, EncodeFailed, and StartFailed for the decode processes.
    """
    settings = setup.settings()
    with ExitStack() as stack:
        snapshot, encoder = _open_snapshot(setup, settings, on_progress, stack)
        engine = LocalEngine(
            snapshot,
            encoder,
            decode_workers=num_decoders(settings),
            limits=pool_limits(settings),
            decoder=settings.decoder,
            on_close=encoder.close,
        )
        stack.pop_all()
        return engine


def open_snapshot(setup: LocalSetup, *, on_progress: OnProgress = lambda done, total: None) -> Snapshot:
    """For engines of other processes: the model is loaded for the labels only. Raises as ``open_engine`` does."""
    with ExitStack() as stack:
        return _open_snapshot(setup, setup.settings(), on_progress, stack)[0]


def _open_snapshot(
    setup: LocalSetup, settings: Settings, on_progress: OnProgress, stack: ExitStack
) -> tuple[Snapshot, LocalEncoder]:
    quiet_logs()
    check_spec(settings.model)
    # A mistake in the labels is found before the model is loaded.
    labels = None
    if setup.labels is not None:
        labels = labels_of_names(setup.labels)
    elif setup.labels_file is not None:
        labels = labels_of_file(setup.labels_file)
    spec, limits = settings.model, engine_limits(settings)
    encoder = LocalEncoder.load(spec, device=settings.device, precision=settings.precision, limits=limits)
    stack.callback(encoder.close)
    cache = LabelCache(settings.label_cache_dir, settings.label_cache_bytes)
    try:
        if labels is not None:
            return snapshot_of_labels(spec, encoder, labels, cache, on_progress=on_progress), encoder
        assert setup.namespace is not None
        stored = read_namespace(settings, setup.namespace, encoder.facts.fingerprint)
        return snapshot_of_namespace(spec, encoder, stored, cache, on_progress=on_progress), encoder
    finally:
        cache.close()


def num_decoders(settings: Settings) -> int:
    """As set, else one per CPU: unlike a service, a bulk run has the machine for itself."""
    return settings.decode_workers if "decode_workers" in settings.model_fields_set else num_cpus()


def quiet_logs() -> None:
    """Of an application that has not configured structlog, which prints everything to stdout by default."""
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
