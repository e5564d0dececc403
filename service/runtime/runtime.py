"""The running parts of the service: built, started and stopped in order.

The start runs in a thread, so that /livez and /readyz answer at once. A configuration error ends it (``on_fatal``); an
unavailable store is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import structlog

from vidlex.model.classifier import Classifier
from vidlex.model.specs import list_zoo
from vidlex.service.access.access_control import AccessControl
from vidlex.service.access.key_store import KeyStore
from vidlex.service.classification.classifier import VideoClassifier
from vidlex.service.classification.features import FeatureCache
from vidlex.service.decode.limits import pool_limits
from vidlex.service.decode.pool import DecodePool
from vidlex.service.engine.engine import Engine
from vidlex.service.engine.limits import engine_limits
from vidlex.service.engine.loading import import_encoders, load_copies
from vidlex.service.errors import NoApiKeys
from vidlex.service.http.admission import Admission
from vidlex.service.http.context import Context, Parts
from vidlex.service.http.graceful_shutdown import GracefulShutdown
from vidlex.service.http.uploads import Spool
from vidlex.service.jobs.runner import JobRunner
from vidlex.service.labels.store.model_pointer import ModelPointerStore
from vidlex.service.models.recent_statistics import RecentStatistics
from vidlex.service.models.recent_videos import RecentVideos
from vidlex.service.models.registry import ModelRegistry
from vidlex.service.models.served_model import ServedModel
from vidlex.service.registration.label_cache import LabelCache
from vidlex.service.runtime.background import BackgroundParts
from vidlex.service.runtime.limits import num_spare_decoders, served_limits, upload_limits
from vidlex.service.runtime.readiness import State, readiness
from vidlex.service.runtime.store_connection import StartCancelled, StoreConnection
from vidlex.service.schemas.health import ReadyView
from vidlex.service.settings import Settings
from vidlex.service.telemetry.metrics import Metrics

_log = structlog.get_logger("vidlex.runtime")

# Replacing a decode process takes seconds; after a longer outage the service is not ready.
MAX_DECODER_OUTAGE_SECONDS = 10.0
_MAX_DETAIL_CHARS = 600


class Runtime:
    """``start`` returns at once; ``stop`` waits, and must follow the last request.

    ``joins_store``: of a process next to the service, which owns the embedded store; see StoreConnection.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        classifier: Classifier | None,
        access: AccessControl,
        *,
        shutdown: GracefulShutdown,
        on_fatal: Callable[[str], None],
        joins_store: bool = False,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._classifier_override = classifier
        self._access = access
        self._shutdown = shutdown
        self._on_fatal = on_fatal
        self._stopping = threading.Event()
        self._starter = threading.Thread(target=self._start_up, name="vidlex-start", daemon=True)
        self._cleanup = ExitStack()
        self._cleanup_lock = threading.Lock()
        self._has_failed = False
        self._step = "starting"
        self._store_connection = StoreConnection(settings, self._stopping, joins=joins_store)
        self._starting_model: ServedModel | None = None  # only until ``_models`` owns it, which may unload it later
        self.feature_cache = FeatureCache(settings.feature_cache_bytes)
        self._models: ModelRegistry | None = None
        self._background: BackgroundParts | None = None
        self._recent_videos = RecentVideos(settings.keep_videos, settings.keep_video_bytes)
        self._recent_statistics = RecentStatistics(
            is_enabled=settings.collect_statistics, max_namespaces=settings.max_namespaces
        )
        self.label_cache = LabelCache(
            settings.label_cache_dir, settings.label_cache_bytes, on_lookup=metrics.on_label_lookup
        )
        self.pool = DecodePool(
            settings.decode_workers,
            pool_limits(settings),
            num_spares=num_spare_decoders(settings),
            decoder=settings.decoder,
        )
        self.context = Context(
            spool=Spool(settings.uploads_dir, upload_limits(settings)),
            metrics=metrics,
            admission=Admission(settings.max_waiting_videos, settings.decode_workers),
            request_timeout_seconds=settings.request_timeout_seconds,
            namespace=settings.namespace,
            revision_wait_seconds=settings.revision_wait_seconds,
            readiness=self.readiness,
            is_stopping=lambda: shutdown.has_begun,
        )

    def start(self) -> None:
        self.context.spool.start()
        self._starter.start()

    def stop(self) -> None:
        _log.info("stopping")
        self.context.parts = None
        self._stopping.set()
        self._starter.join(timeout=20.0)
        with self._cleanup_lock:
            self._cleanup.close()
        self.context.spool.close()
        _log.info("stopped")

    def _at_stop(self, action: Callable[[], object]) -> None:
        """Raises StartCancelled if the stop has begun."""
        with self._cleanup_lock:
            self._cleanup.callback(action)
            if self._stopping.is_set():
                raise StartCancelled

    def _start_up(self) -> None:
        try:
            self._start_parts()
        except StartCancelled:
            with self._cleanup_lock:
                self._cleanup.close()
        except NoApiKeys as error:
            self._has_failed = True
            _log.error("refused_to_start", detail=str(error))
            self._on_fatal(str(error))
        except Exception as error:
            self._has_failed = True
            _log.exception("start_failed", step=self._step, internal=getattr(error, "internal", ""))
            detail = str(error).strip()[:_MAX_DETAIL_CHARS] or type(error).__name__
            self._on_fatal(f"it failed while {self._step}: {detail}")

    def _start_parts(self) -> None:
        started = time.monotonic()
        with ThreadPoolExecutor(2, thread_name_prefix="vidlex-start") as threads:
            self._at_stop(self.label_cache.close)
            self._at_stop(self.pool.close)
            pool_started = threads.submit(self.pool.start)
            threads.submit(self._import_encoders)
            self._step = "opening the label store"
            self._at_stop(self._store_connection.close)
            self._store_connection.open()
            self._step = "reading the API keys"
            self._at_stop(self._access.close)
            keys = KeyStore(self._store_connection.client, guard=self._store_connection.guard.check)
            self._store_connection.retry_while_unavailable(lambda: self._access.attach(keys))
            pointers = ModelPointerStore(self._store_connection.client)
            spec = self._store_connection.retry_while_unavailable(lambda: self._spec_to_serve(pointers))
            self._step = "loading the model"
            model = self._starting_model = self._load(spec)
            self._at_stop(self._close_starting_model)
            self._step = "starting the decode processes"
            pool_started.result()
        self._step = "encoding and loading labels"
        vocabulary = self._store_connection.retry_while_unavailable(lambda: model.pin(self._settings.namespace))
        while model.pending_ids(vocabulary):
            self._pause(0.02)
        self._step = "warming up the model"
        while not model.engine.is_healthy:
            self._pause(0.02)
            if not model.engine.is_alive:
                raise RuntimeError("the engine's threads have ended")
        store = self._store_connection
        models = ModelRegistry(self._settings.model, store.client, self._load, model, guard=store.guard.check)
        self._models = models
        self._at_stop(models.close)
        self._store_connection.retry_while_unavailable(models.start)
        self._starting_model = None
        self._step = "opening the folders of jobs and kept videos"
        self.context.parts = self._parts(models)
        self._step = ""
        index = vocabulary.index
        _log.info("ready", labels=len(index), revision=index.revision, seconds=round(time.monotonic() - started, 2))

    def _close_starting_model(self) -> None:
        if self._starting_model is not None:
            self._starting_model.close()

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise StartCancelled

    def _import_encoders(self) -> None:
        # torch takes seconds to import; the store is opened at the same time, and /livez is answered.
        if self._classifier_override is None:
            import_encoders(self._settings.model)

    def _spec_to_serve(self, pointers: ModelPointerStore) -> str:
        pointer = pointers.get()
        if pointer is not None and pointer.applies_to(self._settings.model):
            return pointer.served.spec
        return self._settings.model

    def _load_copies(self, spec: str) -> list[Classifier]:
        if self._classifier_override is not None and spec == self._settings.model:
            return [self._classifier_override]
        return load_copies(spec, device=self._settings.device, precision=self._settings.precision)

    def _load(self, spec: str) -> ServedModel:
        copies = self._load_copies(spec)
        classifier = copies[0]
        engine = Engine(copies, engine_limits(self._settings), on_batch=self._metrics.on_batch)
        limits = served_limits(self._settings)
        model = ServedModel(classifier, engine, self._store_connection.store, self.label_cache, limits, spec=spec)
        _log.info(
            "model_loaded",
            model=model.facts.id,
            fingerprint=model.facts.fingerprint,
            device=",".join(copy.device for copy in copies),
            encoder=classifier.info().get("encoder"),
        )
        model.start()
        return model

    def _parts(self, models: ModelRegistry) -> Parts:
        videos = VideoClassifier(
            pool=self.pool,
            metrics=self._metrics,
            max_frames=self._settings.max_frames,
            features=self.feature_cache,
            is_store_available=lambda: self._store_connection.is_available,
            revision_wait_seconds=self._settings.revision_wait_seconds,
            recent_videos=self._recent_videos,
            recent_statistics=self._recent_statistics,
        )
        background = BackgroundParts(
            self._settings,
            self._store_connection,
            models,
            videos,
            self._metrics,
            is_draining=lambda: self._shutdown.has_begun,
        )
        background.start()
        self._at_stop(background.close)
        self._background = background
        recent = self._recent_videos, self._recent_statistics
        return Parts(models, videos, *recent, self._is_allowed_spec, background.parts)

    def _is_allowed_spec(self, spec: str) -> bool:
        # Clients may load only models that the operator has named, not any path.
        return spec in (self._settings.model, *self._settings.allowed_models, *list_zoo())

    @property
    def model(self) -> ServedModel | None:
        return self._starting_model if self._models is None else self._models.served

    @property
    def job_runner(self) -> JobRunner | None:
        """None before the parts exist."""
        return None if self._background is None else self._background.jobs.runner

    def readiness(self) -> ReadyView:
        """Requests a probe of devices without a recent successful pass, but does not wait for it."""
        model = self.model
        if model is not None:
            model.engine.request_probes()
        state = State(
            is_stopping=self._shutdown.has_begun or self._stopping.is_set(),
            step=self._step,
            has_failed=self._has_failed,
            store_problem=self._store_connection.problem,
            store_id=self._store_connection.guard.shown_id,
            is_schema_checked=self._store_connection.is_schema_checked,
            model=model,
            num_decoders=self.pool.num_alive,
            max_decoders=self._settings.decode_workers,
            are_decoders_ok=self.pool.longest_outage_seconds < MAX_DECODER_OUTAGE_SECONDS,
            isolation=self.pool.isolation,
        )
        return readiness(state)
