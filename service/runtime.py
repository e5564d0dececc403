"""The running parts of the service: made, watched and stopped in order.

Start: settings -> store -> migrations -> model -> labels encoded by this model -> index -> warm-up -> ready. It runs
in a thread, so /livez and /readyz answer from the first moment. Whatever is wrong with the configuration ends the
start for good (``on_fatal``); a remote store that does not answer yet is waited for.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import redis
import structlog

from migrations.runner import migrate
from model.classifier import Classifier
from model.video.limits import DecodeLimits
from service.decode.pool import DecodePool, PoolLimits
from service.errors import StoreUnavailable, VidlexError
from service.inference.classifier import ModelFacts, VideoClassifier
from service.inference.engine import Engine, EngineLimits
from service.inference.labeler import Labeler
from service.labels.client import connect_url, store_errors
from service.labels.embedded import EmbeddedStore
from service.labels.index import LabelIndex
from service.labels.records import Label
from service.labels.store import LabelStore
from service.labels.sync import IndexSync
from service.metrics import Metrics
from service.routes.context import Admission, Context, Parts
from service.routes.uploads import Spool, UploadLimits
from service.schemas.health import CheckView, ReadyView
from service.settings import Settings

log = structlog.get_logger("vidlex.runtime")

PING_SECONDS = 0.5
SILENT_SECONDS = 3.0
"""A store that has not answered a ping for so long counts as gone, even if the ping has not failed yet."""


DECODER_SECONDS = 15.0
"""A decode process that a file has ended is replaced within seconds; only longer without any is a fault of ours."""


class _Stopped(Exception):
    """The service is asked to stop while it starts."""


class Runtime:
    """The parts while they run. ``start`` returns at once."""

    def __init__(
        self, settings: Settings, metrics: Metrics, classifier: Classifier | None, on_fatal: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._given_classifier = classifier
        self._on_fatal = on_fatal
        self._stopping = threading.Event()
        self._starter = threading.Thread(target=self._start_up, name="vidlex-start", daemon=True)
        self._cleanup = ExitStack()
        self._cleanup_lock = threading.Lock()
        self._to_encode: queue.SimpleQueue[Sequence[Label]] = queue.SimpleQueue()
        self._refused: set[tuple[str, str]] = set()
        self._failed = ""
        self._progress = "starting"
        self._store: LabelStore | None = None
        self._store_answered_at = -SILENT_SECONDS
        self._store_fails = True
        self._schema_ok = False
        self._decoder_seen_at = -DECODER_SECONDS
        self._facts: ModelFacts | None = None
        self._engine: Engine | None = None
        self._index: LabelIndex | None = None
        self._sync: IndexSync | None = None
        self.pool = DecodePool(settings.decode_workers, _pool_limits(settings))
        self.context = Context(
            spool=Spool(settings.uploads_dir, _upload_limits(settings)),
            metrics=metrics,
            admission=Admission(settings.max_waiting_videos, settings.decode_workers),
            request_timeout_seconds=settings.request_timeout_seconds,
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
                raise _Stopped

    def _start_up(self) -> None:
        try:
            self._start_parts()
        except _Stopped:
            with self._cleanup_lock:
                self._cleanup.close()
        except Exception as error:
            self._failed = self._progress
            log.exception("start_failed", step=self._progress, internal=getattr(error, "internal", ""))
            self._on_fatal()

    def _start_parts(self) -> None:
        started = time.monotonic()
        with ThreadPoolExecutor(2, thread_name_prefix="vidlex-start") as helpers:
            self._undo(self.pool.close)
            pool_started = helpers.submit(self.pool.start)
            model_loaded = helpers.submit(self._load_model)
            self._progress = "opening the label store"
            store = self._open_store()
            self._progress = "loading the model"
            classifier = model_loaded.result()
            self._progress = "starting the decode processes"
            pool_started.result()
        facts = self._facts = ModelFacts.of(classifier)
        log.info("model_loaded", model=facts.id, fingerprint=facts.fingerprint, device=classifier.device)
        self._progress = "warming up the model"
        engine = self._engine = Engine(classifier, _engine_limits(self._settings), on_batch=self._metrics.on_batch)
        engine.start()
        self._undo(engine.close)
        self._progress = "encoding and loading labels"
        index = self._index = LabelIndex(facts.dim, facts.fingerprint)
        sync = self._sync = IndexSync(store, index, on_missing=self._to_encode.put)
        self._undo(sync.close)
        labeler = Labeler(engine, store, sync, facts.fingerprint, timeout_seconds=self._settings.label_timeout_seconds)
        self._encode_stored(store, labeler, facts.fingerprint)
        self._with_store(sync.load)
        sync.start()
        threading.Thread(target=self._keep_encoded, args=(labeler,), name="vidlex-missing", daemon=True).start()
        self._progress = "warming up the model"
        while not engine.healthy:
            self._check_stopping(0.05)
            if not engine.alive:
                raise RuntimeError("the engine's thread has ended")
        videos = VideoClassifier(
            facts,
            engine=engine,
            pool=self.pool,
            index=index,
            sync=sync,
            labeler=labeler,
            metrics=self._metrics,
            max_frames=self._settings.max_frames,
            store_answers=self.store_answers,
        )
        self.context.parts = Parts(store, labeler, videos)
        log.info("ready", labels=len(index), revision=index.revision, seconds=round(time.monotonic() - started, 2))

    def _check_stopping(self, wait_seconds: float = 0.0) -> None:
        if self._stopping.wait(wait_seconds):
            raise _Stopped

    # --- the steps

    def _load_model(self) -> Classifier:
        if self._given_classifier is not None:
            return self._given_classifier
        if self._settings.model == "dummy":
            from model.dummy import DummyClassifier

            return DummyClassifier()
        # Imported here because torch takes seconds to load: the service listens and answers /livez meanwhile.
        from model.factory import load_classifier

        return load_classifier(self._settings.model, device=self._settings.device)

    def _open_store(self) -> LabelStore:
        """Connected, migrated, watched."""
        url = self._settings.redis_url
        if url is None:
            embedded = EmbeddedStore(self._settings.data_dir)
            self._undo(embedded.stop)
            embedded.start()
            client = embedded.client()
        else:
            client = connect_url(url.get_secret_value())
        self._undo(client.close)
        store = LabelStore(client, self._settings.namespace)
        self._with_store(lambda: self._migrate(client))
        self._with_store(store.check_schema)
        self._schema_ok = True
        self._store = store
        threading.Thread(target=self._watch_store, args=(store,), name="vidlex-ping", daemon=True).start()
        return store

    def _migrate(self, client: redis.Redis) -> None:
        with store_errors():
            for name in migrate(client):
                log.info("migrated", migration=name)

    def _with_store(self, action: Callable[[], object]) -> None:
        """Do ``action``; while the store does not answer, say so and try again."""
        pause_seconds = 0.2
        while True:
            try:
                action()
                return
            except StoreUnavailable as error:
                log.warning("waiting_for_store", internal=error.internal)
            self._check_stopping(pause_seconds)
            pause_seconds = min(5.0, pause_seconds * 2)

    def _encode_stored(self, store: LabelStore, labeler: Labeler, fingerprint: str) -> None:
        """Every stored label gets a vector of this model before the service is ready."""

        def encode() -> None:
            missing = list(store.missing_vectors(fingerprint))
            if not missing:
                return
            others = [f for f in store.generations() if f != fingerprint]
            log.warning(
                "encoding_stored_labels",
                reason="this model has not encoded them; vectors of another model are never used",
                labels=len(missing),
                fingerprint=fingerprint,
                other_fingerprints=others,
            )
            self._encode(labeler, missing)

        self._with_store(encode)

    def _encode(self, labeler: Labeler, missing: Sequence[Label]) -> None:
        started = last = time.monotonic()

        def on_progress(num_done: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > 5 or num_done == len(missing):
                last = now
                log.info("labels_encoded", done=num_done, total=len(missing), seconds=round(now - started, 1))

        refused = set(labeler.encode_missing(missing, on_progress=on_progress, stop=self._stopping))
        self._refused.update((label.id, label.name) for label in missing if label.id in refused)
        self._check_stopping()

    def _keep_encoded(self, labeler: Labeler) -> None:
        """Encode labels that other replicas, with another model, have stored."""
        while not self._stopping.is_set():
            try:
                arrived = self._to_encode.get(timeout=0.5)
            except queue.Empty:
                continue
            missing = [label for label in arrived if (label.id, label.name) not in self._refused]
            try:
                if missing:
                    self._with_store(lambda labels=missing: self._encode(labeler, labels))  # type: ignore[misc]
            except _Stopped:
                return
            except VidlexError as error:
                log.warning("labels_left_unencoded", labels=len(missing), code=error.code)

    def _watch_store(self, store: LabelStore) -> None:
        while True:
            try:
                store.ping()
                if self._store_fails:
                    log.info("store_answers")
                self._store_fails = False
                self._store_answered_at = time.monotonic()
            except StoreUnavailable as error:
                if not self._store_fails:
                    log.error("store_lost", internal=error.internal)
                self._store_fails = True
            if self.pool.alive_workers:
                self._decoder_seen_at = time.monotonic()
            if self._stopping.wait(PING_SECONDS):
                return

    # --- what is told about it

    def store_answers(self) -> bool:
        return not self._store_fails and time.monotonic() - self._store_answered_at < SILENT_SECONDS

    @property
    def num_labels(self) -> int:
        return 0 if self._index is None else len(self._index)

    @property
    def queued_frames(self) -> int:
        return 0 if self._engine is None else self._engine.queued_frames

    def readiness(self) -> ReadyView:
        """Each condition of being ready. Reads flags only: it never waits."""
        workers, now = self.pool.alive_workers, time.monotonic()
        if workers:
            self._decoder_seen_at = now
        decoding = now - self._decoder_seen_at < DECODER_SECONDS
        engine, sync, facts = self._engine, self._sync, self._facts
        indexed = sync is not None and sync.healthy
        checks = {
            "store": _check(self.store_answers(), "answers", "does not answer"),
            "schema": _check(self._schema_ok, "up to date", "not checked yet"),
            "model": _check(facts is not None, facts.id if facts else "", "not loaded yet"),
            "encoder": _check(
                engine is not None and engine.healthy,
                "the last forward pass worked",
                "not running" if engine is None or not engine.alive else "the last forward pass failed",
            ),
            "index": _check(
                indexed,
                f"{self.num_labels} labels",
                "not loaded yet" if self.context.parts is None else "not in touch with the store",
            ),
            "decoders": _check(decoding, f"{workers} of {self._settings.decode_workers} alive", "none alive"),
        }
        if self._stopping.is_set():
            return ReadyView(status="stopping", checks=checks)
        if self._failed:
            checks["start"] = CheckView(ok=False, detail=f"failed while {self._failed}; the log says why")
            return ReadyView(status="not_ready", checks=checks)
        if self.context.parts is None:
            checks["start"] = CheckView(ok=False, detail=self._progress)
            return ReadyView(status="starting", checks=checks)
        return ReadyView(status="ready" if all(c.ok for c in checks.values()) else "not_ready", checks=checks)


def _check(ok: bool, good: str, bad: str) -> CheckView:
    return CheckView(ok=ok, detail=good if ok else bad)


def _upload_limits(settings: Settings) -> UploadLimits:
    return UploadLimits(
        max_bytes=settings.max_upload_bytes,
        max_json_bytes=settings.max_json_bytes,
        max_spool_bytes=settings.max_spool_bytes,
        max_uploads=settings.max_waiting_uploads,
        idle_seconds=settings.upload_idle_seconds,
        timeout_seconds=settings.upload_timeout_seconds,
    )


def _pool_limits(settings: Settings) -> PoolLimits:
    return PoolLimits(
        max_waiting=settings.max_waiting_videos,
        timeout_seconds=settings.decode_timeout_seconds,
        memory_bytes=settings.decode_memory_bytes,
        decode=DecodeLimits(
            max_bytes=settings.max_upload_bytes,
            max_pixels=settings.max_pixels,
            max_side=settings.max_side,
            max_duration_ms=settings.max_duration_ms,
            max_fps=settings.max_fps,
            max_frames=settings.max_frames,
        ),
    )


def _engine_limits(settings: Settings) -> EngineLimits:
    return EngineLimits(
        max_queued_frames=settings.max_queued_frames,
        max_queued_labels=settings.max_queued_labels,
        max_batch_frames=settings.max_batch_frames,
        max_batch_labels=settings.max_batch_labels,
    )
