"""The running parts of the service: made, watched and stopped in order.

Start: settings -> store -> migrations -> model -> index -> labels that this model has not encoded -> warm-up -> ready.
It runs in a thread, so /livez and /readyz answer from the first moment. Whatever is wrong with the configuration ends
the start for good (``on_fatal``); a remote store that does not answer yet is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import structlog

from vidlex.model.classifier import Classifier
from vidlex.model.dummy import create_dummy
from vidlex.model.weights import list_zoo
from vidlex.service.access.gate import Gate
from vidlex.service.access.key_store import KeyStore
from vidlex.service.classification.classifier import VideoClassifier
from vidlex.service.classification.features import FeatureCache
from vidlex.service.decode.pool import DecodePool
from vidlex.service.engine.engine import Engine
from vidlex.service.errors import NoApiKeys
from vidlex.service.http.admission import Admission
from vidlex.service.http.context import Context, Parts
from vidlex.service.http.shutdown import Draining
from vidlex.service.http.uploads import Spool
from vidlex.service.labels.store.model_pointer import Catalogue
from vidlex.service.metrics import Metrics
from vidlex.service.models.recent_videos import KeptVideos
from vidlex.service.models.registry import Models
from vidlex.service.models.served_model import ServedModel, Vocabulary
from vidlex.service.registration.label_cache import LabelCache
from vidlex.service.runtime.database import Database, Stopped
from vidlex.service.runtime.limits import engine_limits, pool_limits, served_limits, upload_limits
from vidlex.service.runtime.readiness import State, readiness
from vidlex.service.schemas.health import ReadyView
from vidlex.service.settings import Settings

log = structlog.get_logger("vidlex.runtime")

DECODER_SECONDS = 10.0
"""A decode process that a file has ended is replaced within seconds; one that stays away longer is a fault of ours."""
MAX_REASON = 600
"""Characters of an error that end the start."""


class Runtime:
    """The parts while they run. ``start`` returns at once."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        classifier: Classifier | None,
        gate: Gate,
        *,
        draining: Draining,
        on_fatal: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._given_classifier = classifier
        self._gate = gate
        self._draining = draining
        self._on_fatal = on_fatal
        self._stopping = threading.Event()
        self._starter = threading.Thread(target=self._start_up, name="vidlex-start", daemon=True)
        self._cleanup = ExitStack()
        self._cleanup_lock = threading.Lock()
        self._failed = False
        self._progress = "starting"
        self._database = Database(settings, self._stopping)
        self._first: ServedModel | None = None
        """The first model until the others look after it too: it may be dropped, and must not be held here then."""
        self.features = FeatureCache(settings.feature_cache_bytes)
        self._models: Models | None = None
        self._kept = KeptVideos(settings.keep_videos, settings.keep_video_bytes)
        self.label_cache = LabelCache(
            settings.label_cache_dir, settings.label_cache_bytes, on_lookup=metrics.on_label_lookup
        )
        self.pool = DecodePool(settings.decode_workers, pool_limits(settings), decoder=settings.decoder)
        self.context = Context(
            spool=Spool(settings.uploads_dir, upload_limits(settings)),
            metrics=metrics,
            admission=Admission(settings.max_waiting_videos, settings.decode_workers),
            request_timeout_seconds=settings.request_timeout_seconds,
            namespace=settings.namespace,
            revision_wait_seconds=settings.revision_wait_seconds,
            readiness=self.readiness,
        )

    # --- life

    def start(self) -> None:
        self.context.spool.start()
        self._starter.start()

    def stop(self) -> None:
        """Requests in flight are done when this is called. Ends everything in reverse order."""
        log.info("stopping")
        self.context.parts = None
        self._stopping.set()
        self._starter.join(timeout=20.0)
        with self._cleanup_lock:
            self._cleanup.close()
        self.context.spool.close()
        log.info("stopped")

    def _undo(self, action: Callable[[], object]) -> None:
        """Remember how to end a part. If the service has been stopped meanwhile: end it now."""
        with self._cleanup_lock:
            self._cleanup.callback(action)
            if self._stopping.is_set():
                raise Stopped

    def _start_up(self) -> None:
        try:
            self._start_parts()
        except Stopped:
            with self._cleanup_lock:
                self._cleanup.close()
        except NoApiKeys as error:
            self._failed = True
            log.error("refused_to_start", detail=str(error))
            self._on_fatal(str(error))
        except Exception as error:
            self._failed = True
            log.exception("start_failed", step=self._progress, internal=getattr(error, "internal", ""))
            said = str(error).strip()[:MAX_REASON] or type(error).__name__
            self._on_fatal(f"it failed while {self._progress}: {said}")

    def _start_parts(self) -> None:
        started = time.monotonic()
        with ThreadPoolExecutor(2, thread_name_prefix="vidlex-start") as helpers:
            self._undo(self.label_cache.close)
            self._undo(self.pool.close)
            pool_started = helpers.submit(self.pool.start)
            helpers.submit(self._import_encoders)
            self._progress = "opening the label store"
            self._undo(self._database.close)
            self._database.open()
            self._progress = "reading the API keys"
            self._undo(self._gate.close)
            self._database.when_it_answers(lambda: self._gate.attach(KeyStore(self._database.client)))
            catalogue = Catalogue(self._database.client)
            spec = self._database.when_it_answers(lambda: self._spec_to_serve(catalogue))
            self._progress = "loading the model"
            model = self._first = self._load(spec)
            self._undo(self._close_first)
            self._progress = "starting the decode processes"
            pool_started.result()
        self._progress = "encoding and loading labels"
        self._database.when_it_answers(lambda: model.keep(self._settings.namespace))
        (vocabulary,) = model.open_vocabularies()
        while model.awaited(vocabulary):
            self._pause(0.02)
        self._progress = "warming up the model"
        while not model.engine.healthy:
            self._pause(0.02)
            if not model.engine.alive:
                raise RuntimeError("the engine's threads have ended")
        models = self._models = Models(self._settings.model, catalogue, self._load)
        self._undo(models.close)
        self._database.when_it_answers(lambda: models.start(model))
        self._first = None
        self.context.parts = self._parts(models)
        self._progress = ""
        log.info("ready", **_counts(vocabulary), seconds=round(time.monotonic() - started, 2))

    def _close_first(self) -> None:
        if self._first is not None:
            self._first.close()

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise Stopped

    # --- the steps

    def _import_encoders(self) -> None:
        """Torch takes seconds to import: meanwhile the store is opened."""
        if self._given_classifier is None and create_dummy(self._settings.model) is None:
            import vidlex.model.factory  # noqa: F401

    def _spec_to_serve(self, catalogue: Catalogue) -> str:
        """What was activated under the present VIDLEX_MODEL, else VIDLEX_MODEL: see Pointer."""
        pointer = catalogue.pointer()
        if pointer is not None and pointer.rules(self._settings.model):
            return pointer.served.spec
        return self._settings.model

    def _load_copies(self, spec: str) -> list[Classifier]:
        """The model once for each device."""
        if self._given_classifier is not None and spec == self._settings.model:
            return [self._given_classifier]
        dummies = [create_dummy(spec) for _ in self._settings.device.split(",")]
        if dummies[0] is not None:
            return [dummy for dummy in dummies if dummy is not None]
        # Imported here because torch takes seconds to load: the service listens and answers /livez meanwhile.
        from vidlex.model.factory import list_devices, load_classifier

        devices = list_devices(self._settings.device)
        return [load_classifier(spec, device=device, precision=self._settings.precision) for device in devices]

    def _load(self, spec: str) -> ServedModel:
        """The model with an engine of its own, started."""
        copies = self._load_copies(spec)
        classifier = copies[0]
        engine = Engine(copies, engine_limits(self._settings), on_batch=self._metrics.on_batch)
        limits = served_limits(self._settings)
        model = ServedModel(classifier, engine, self._database.store, self.label_cache, limits, spec=spec)
        log.info(
            "model_loaded",
            model=model.facts.id,
            fingerprint=model.facts.fingerprint,
            device=",".join(copy.device for copy in copies),
            encoder=classifier.info().get("encoder"),
        )
        model.start()
        return model

    def _parts(self, models: Models) -> Parts:
        videos = VideoClassifier(
            pool=self.pool,
            metrics=self._metrics,
            max_frames=self._settings.max_frames,
            features=self.features,
            store_answers=lambda: self._database.answers,
            revision_wait_seconds=self._settings.revision_wait_seconds,
            kept=self._kept,
        )
        return Parts(models, videos, self._kept, self._may_load)

    def _may_load(self, spec: str) -> bool:
        """Clients name models, and a path from a client is not to be trusted: only what the operator has named."""
        return spec in (self._settings.model, *self._settings.allowed_models, *list_zoo())

    # --- what is told about it

    @property
    def served(self) -> ServedModel | None:
        """The model that serves, or is about to."""
        return (self._models.served if self._models is not None else None) or self._first

    @property
    def num_labels(self) -> int:
        return 0 if self.served is None else sum(len(v.index) for v in self.served.open_vocabularies())

    @property
    def queued_frames(self) -> int:
        return 0 if self.served is None else self.served.engine.queued_frames

    @property
    def queued_labels(self) -> int:
        return 0 if self.served is None else self.served.engine.queued_labels

    @property
    def encoder_works(self) -> bool:
        return self.served is not None and self.served.engine.healthy

    @property
    def devices_working(self) -> int:
        return 0 if self.served is None else sum(state == "works" for _, state in self.served.engine.states)

    @property
    def revision(self) -> int:
        """Of the settings' namespace; 0 before it is open."""
        vocabularies = [] if self.served is None else self.served.open_vocabularies()
        return max((v.sync.revision for v in vocabularies if v.namespace == self._settings.namespace), default=0)

    def readiness(self) -> ReadyView:
        """Each condition of being ready. Reads flags only: it never waits, but may have the encoder tried."""
        if self.served is not None:
            self.served.engine.check()
        state = State(
            stopping=self._draining.has_begun or self._stopping.is_set(),
            progress=self._progress,
            failed=self._failed,
            store_answers=self._database.answers,
            schema_ok=self._database.schema_ok,
            model=self.served,
            num_decoders=self.pool.alive_workers,
            max_decoders=self._settings.decode_workers,
            decoding=self.pool.longest_absence_seconds < DECODER_SECONDS,
        )
        return readiness(state)


def _counts(vocabulary: Vocabulary) -> dict[str, int]:
    return {"labels": len(vocabulary.index), "revision": vocabulary.index.revision}
