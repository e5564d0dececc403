"""The loaded models: prepared, activated, rolled back and dropped while requests are served.

The ModelPointer in the store names the models that all replicas load and serve; each replica polls it. A request uses
one vocabulary from beginning to end, so models never mix. While several models are loaded, a label write returns only
after all of them have encoded the label.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import redis
import structlog

from vidlex.service import audit
from vidlex.service.errors import ModelConflict, NotFound, StoreUnavailable, VidlexError
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.labels.store.model_pointer import ModelName, ModelPointer, ModelPointerStore
from vidlex.service.labels.store.namespaces import count_labels, count_vectors, list_namespaces
from vidlex.service.labels.store.redis_types import Guard, accept_any
from vidlex.service.models.served_model import ModelClosed, ServedModel, Vocabulary
from vidlex.service.sharing.requester import BACKGROUND

_log = structlog.get_logger("vidlex.models")

POLL_SECONDS = 0.4
RETRY_SECONDS = 30.0  # before a model that failed to load is loaded again
ACTIVATION_WAIT_SECONDS = 5.0  # for labels that are being written


@dataclass(frozen=True)
class RegistryState:
    configured: str
    pointer: ModelPointer
    loaded: dict[str, ServedModel]  # by fingerprint
    loading: str | None  # spec of the model
    problem: str | None  # why the last load failed


class ModelRegistry:
    """``start`` first, ``close`` last. Thread-safe.

    ``load(spec)`` returns a started model; it may take minutes and raise any exception. ``guard`` may refuse writes to
    the store.
    """

    def __init__(
        self,
        configured: str,
        client: redis.Redis,
        load: Callable[[str], ServedModel],
        served: ServedModel,
        *,
        guard: Guard = accept_any,
    ) -> None:
        self._configured = configured
        self._client = client
        self._pointers = ModelPointerStore(client, guard=guard)
        self._load = load
        self._served = served
        self._loaded: dict[str, ServedModel] = {}
        self._retired: list[ServedModel] = []
        self._loading: str | None = None
        self._problem: str | None = None
        self._retry_at = 0.0
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="vidlex-load")
        self._thread = threading.Thread(target=self._poll, name="vidlex-models", daemon=True)

    def start(self) -> None:
        """Takes over the served model. Raises StoreUnavailable, after which it may be called again."""
        stored = self._pointers.get()
        name = self._served.name
        if stored is not None and stored.applies_to(self._configured) and stored.served != name:
            # The files of this spec were replaced: the stored previous and prepared models no longer apply.
            _log.warning("served_model_changed", stored=stored.served.fingerprint, fingerprint=name.fingerprint)
            self._pointers.compare_and_set(stored, ModelPointer(self._configured, name))
        with self._lock:
            self._add_loaded(self._served)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5.0)
        self._loader.shutdown(wait=True, cancel_futures=True)
        for model in (*self._loaded.values(), *self._retired):
            model.close()

    @property
    def served(self) -> ServedModel:
        return self._served

    def acquire(self, namespace: str, client: str = BACKGROUND) -> Vocabulary:
        while True:
            model = self._served
            try:
                return model.acquire(namespace, client)
            except ModelClosed:  # another model may have been activated in the meantime
                if model is self._served:
                    raise

    # --- operations of /models; all raise StoreUnavailable, the changing ones also ModelConflict

    def state(self) -> RegistryState:
        _, pointer = self._pointer()
        with self._lock:
            return RegistryState(self._configured, pointer, dict(self._loaded), self._loading, self._problem)

    def count_labels(self) -> dict[str, tuple[int, dict[str, int]]]:
        # By namespace: the number of labels, and the number of vectors by fingerprint.
        return {
            namespace: (count_labels(self._client, namespace), count_vectors(self._client, namespace))
            for namespace in list_namespaces(self._client)
        }

    def prepare(self, spec: str) -> None:
        """Load a model and encode every label with it, in the background. Repeating a call has no effect."""
        _, pointer = self._pointer()
        with self._lock:
            if pointer.prepared is not None and pointer.prepared.spec == spec:
                return
            if self._loading is not None or pointer.prepared is not None:
                raise ModelConflict("Another model is being prepared; activate or drop it first")
            self._submit_load(spec, self._finish_prepare)
        audit.record("model.prepare", spec)

    def activate(self) -> ModelName:
        stored, pointer = self._pointer()
        if pointer.prepared is None:
            raise ModelConflict("No model is prepared")
        num_missing = self._count_missing(self._require_loaded(pointer.prepared))
        if num_missing:
            raise ModelConflict(f"{num_missing} labels are not encoded by it yet", num_missing=num_missing)
        self._set_pointer(stored, replace(pointer, served=pointer.prepared, previous=pointer.served, prepared=None))
        _record("model.activate", pointer.served, pointer.prepared)
        return pointer.prepared

    def rollback(self) -> ModelName:
        stored, pointer = self._pointer()
        if pointer.previous is None:
            raise ModelConflict("There is no previous model")
        self._require_loaded(pointer.previous)
        self._set_pointer(stored, replace(pointer, served=pointer.previous, previous=None, prepared=pointer.served))
        _record("model.rollback", pointer.served, pointer.previous)
        return pointer.previous

    def drop(self, fingerprint: str) -> None:
        """Unload a model that is not served, and delete its vectors in every namespace. Raises NotFound."""
        stored, pointer = self._pointer()
        namespaces = list_namespaces(self._client)
        if fingerprint not in {name.fingerprint for name in pointer.names()} and not any(
            fingerprint in count_vectors(self._client, namespace) for namespace in namespaces
        ):
            raise NotFound(f"Unknown fingerprint {fingerprint!r}; see GET /models")
        if fingerprint in (pointer.served.fingerprint, self._served.facts.fingerprint):
            raise ModelConflict("This model is served; activate another one first")
        previous, prepared = (
            None if name is None or name.fingerprint == fingerprint else name
            for name in (pointer.previous, pointer.prepared)
        )
        self._set_pointer(stored, replace(pointer, previous=previous, prepared=prepared))
        with self._lock:
            retired = list(self._retired)
        for model in retired:
            model.backfill.close()  # it must not write further vectors
        for namespace in namespaces:
            self._served.open_store(namespace).drop_generation(fingerprint)
        audit.record("model.drop", fingerprint)

    def comparison_model(self) -> ServedModel:
        _, pointer = self._pointer()
        name = pointer.prepared or pointer.previous
        if name is None:
            raise ModelConflict("No second model is loaded; prepare one")
        return self._require_loaded(name)

    # --- the pointer

    def _pointer(self) -> tuple[ModelPointer | None, ModelPointer]:
        # The stored pointer, and the one in effect here.
        stored = self._pointers.get()
        if stored is not None and stored.applies_to(self._configured):
            return stored, stored
        return stored, ModelPointer(self._configured, self._served.name)

    def _set_pointer(self, stored: ModelPointer | None, new: ModelPointer) -> None:
        if not self._pointers.compare_and_set(stored, new):
            raise ModelConflict("The models were changed concurrently; check GET /models and try again")
        self._apply(new)

    def _poll(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            try:
                stored, pointer = self._pointer()
                if stored is pointer:
                    self._apply(pointer)
                self._close_retired()
            except StoreUnavailable:
                continue  # readiness reports it
            except Exception:
                _log.exception("model_poll_failed")

    def _apply(self, pointer: ModelPointer) -> None:
        """Switch to the served model if it is loaded, load one that is not, and retire those no longer named."""
        with self._lock:
            served = self._loaded.get(pointer.served.fingerprint)
            if served is not None and served is not self._served:
                _log.info("model_served", model=served.facts.id, fingerprint=served.facts.fingerprint)
                self._served = served
            for name in pointer.names():
                if name.fingerprint not in self._loaded and self._loading is None:
                    if time.monotonic() >= self._retry_at:
                        self._submit_load(name.spec, partial(self._finish_load, name))
                    break
            wanted = {name.fingerprint for name in pointer.names()}
            for fingerprint, model in list(self._loaded.items()):
                if fingerprint not in wanted and model is not self._served:
                    model.backfill.stop()
                    self._retired.append(self._loaded.pop(fingerprint))

    def _close_retired(self) -> None:
        with self._lock:
            idle = [model for model in self._retired if not model.num_users]
            self._retired = [model for model in self._retired if model not in idle]
        for model in idle:
            _log.info("model_unloaded", model=model.facts.id, fingerprint=model.facts.fingerprint)
            model.close()

    # --- loading

    def _submit_load(self, spec: str, on_loaded: Callable[[ServedModel], None]) -> None:
        self._loading, self._problem = spec, None

        def work() -> None:
            try:
                on_loaded(self._load(spec))
            except Exception as error:
                if isinstance(error, VidlexError):
                    problem = str(error)
                    _log.warning("model_load_failed", model=spec, detail=problem, internal=error.internal)
                else:
                    problem = "loading failed; see the log"
                    _log.exception("model_load_failed", model=spec)
                with self._lock:
                    self._problem = problem
                    self._retry_at = time.monotonic() + RETRY_SECONDS
            finally:
                with self._lock:
                    self._loading = None

        self._loader.submit(work)

    def _finish_prepare(self, model: ServedModel) -> None:
        # Published as the prepared model, so that the other replicas load it too.
        stored, pointer = self._pointer()
        if model.facts.fingerprint in self._loaded:
            model.close()
            raise ModelConflict("This model is already loaded")
        if pointer.prepared is not None:
            model.close()
            raise ModelConflict("Another model was prepared in the meantime")
        if not self._pointers.compare_and_set(stored, replace(pointer, prepared=model.name)):
            model.close()
            raise ModelConflict("The models were changed concurrently")
        self._add_and_encode(model)

    def _finish_load(self, name: ModelName, model: ServedModel) -> None:
        if model.facts.fingerprint != name.fingerprint:
            model.close()
            raise ModelConflict(
                "The loaded model is not the prepared one",
                internal=f"{name.spec} has fingerprint {model.facts.fingerprint} here, not {name.fingerprint}",
            )
        self._add_and_encode(model)

    def _add_loaded(self, model: ServedModel) -> None:
        model.on_encoded = self._encode_with_others
        self._loaded[model.facts.fingerprint] = model

    def _add_and_encode(self, model: ServedModel) -> None:
        with self._lock:
            self._add_loaded(model)
        _log.info("additional_model_loaded", model=model.facts.id, fingerprint=model.facts.fingerprint)
        threading.Thread(target=self._encode_namespaces, args=(model,), name="vidlex-prepare", daemon=True).start()

    # --- encoding

    def _encode_namespaces(self, model: ServedModel) -> None:
        done: set[str] = set()
        while not self._stopping.is_set() and self._loaded.get(model.facts.fingerprint) is model:
            try:
                remaining = [namespace for namespace in list_namespaces(self._client) if namespace not in done]
            except StoreUnavailable:
                self._stopping.wait(1.0)
                continue
            if not remaining:
                _log.info("labels_encoded_by_additional_model", model=model.facts.id, namespaces=len(done))
                return
            for namespace in remaining:
                self._encode_namespace(model, namespace)
                done.add(namespace)

    def _encode_namespace(self, model: ServedModel, namespace: str) -> None:
        while not self._stopping.is_set():
            try:
                vocabulary = model.acquire(namespace)  # this queues the labels without a vector
            except ModelClosed:
                return
            except VidlexError as error:
                _log.warning("label_encoding_delayed", namespace=namespace, code=error.code)
                self._stopping.wait(1.0)
                continue
            try:
                while model.pending_ids(vocabulary) and not self._stopping.wait(0.05):
                    if self._loaded.get(model.facts.fingerprint) is not model:
                        return  # dropped in the meantime
            finally:
                vocabulary.release()
            return

    def _count_missing(self, model: ServedModel) -> int:
        deadline = time.monotonic() + ACTIVATION_WAIT_SECONDS
        num_missing = 0
        for namespace in list_namespaces(self._client):
            vocabulary = model.acquire(namespace)
            try:
                vocabulary.sync.wait_for_revision(vocabulary.store.revision(), max(0.0, deadline - time.monotonic()))
                while (missing := model.missing_ids(vocabulary)) and time.monotonic() < deadline:
                    self._stopping.wait(0.02)
                num_missing += len(missing)
            finally:
                vocabulary.release()
        return num_missing

    def _require_loaded(self, name: ModelName) -> ServedModel:
        model = self._loaded.get(name.fingerprint)
        if model is None:
            raise ModelConflict("This replica has not loaded the model yet; try again in a moment")
        return model

    def _encode_with_others(self, writer: ServedModel, namespace: str, labels: Sequence[IndexedLabel]) -> None:
        """Encode labels that one model has just stored with the others, before the write returns."""
        with self._lock:
            others = [model for model in self._loaded.values() if model is not writer]
        for model in others:
            try:
                model.encode_stored(namespace, labels)
            except VidlexError as error:  # the other model's index sync queues the label for backfill
                _log.warning("label_encoding_deferred", namespace=namespace, code=error.code, internal=error.internal)


def _record(action: str, before: ModelName, after: ModelName) -> None:
    audit.record(action, after.fingerprint, before=vars(before), after=vars(after))
