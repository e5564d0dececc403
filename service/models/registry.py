"""Which models are loaded and which of them serves: prepared, activated, rolled back and dropped under load.

A pointer in the store (see ``catalogue.Pointer``) says what all replicas load and serve; each follows it. Every model
has its own engine and its own vectors, and a request that has taken a vocabulary keeps that model to its end, so
nothing ever mixes. While several are loaded, a written label is encoded by all of them before it is answered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import structlog

from vidlex.service.errors import ModelConflict, ModelLoading, NotFound, StoreUnavailable, VidlexError
from vidlex.service.labels.store.model_pointer import Catalogue, ModelName, Pointer
from vidlex.service.labels.store.records import Label
from vidlex.service.models.served_model import ModelClosed, ServedModel, Vocabulary

log = structlog.get_logger("vidlex.models")

FOLLOW_SECONDS = 0.4
RELOAD_SECONDS = 30.0
"""A model that could not be loaded is tried again after this."""
COMPLETE_SECONDS = 5.0
"""How long an activation waits for labels that are just being written."""


@dataclass(frozen=True)
class ModelsState:
    """For GET /models, as this replica sees it."""

    configured: str
    pointer: Pointer
    loaded: dict[str, ServedModel]
    """By fingerprint."""
    loading: str | None
    problem: str | None
    """Why the last model could not be loaded."""


class Models:
    """``start`` with the first model, ``close`` at the end. Thread-safe."""

    def __init__(self, configured: str, catalogue: Catalogue, load: Callable[[str], ServedModel]) -> None:
        """``load(spec)`` gives a started model; it takes long and may raise anything."""
        self._configured = configured
        self._catalogue = catalogue
        self._load_spec = load
        self._served: ServedModel | None = None
        self._loaded: dict[str, ServedModel] = {}
        self._retired: list[ServedModel] = []
        self._loading: str | None = None
        self._problem: str | None = None
        self._retry_at = 0.0
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="vidlex-load")
        self._thread = threading.Thread(target=self._follow, name="vidlex-models", daemon=True)

    def start(self, served: ServedModel) -> None:
        """Raises StoreUnavailable; may then be called again."""
        stored = self._catalogue.pointer()
        if stored is not None and stored.rules(self._configured) and stored.served != served.name:
            # The files behind the name were exchanged: what they hold now serves, and nothing of before can come back.
            log.warning(
                "served_model_is_another_now", stored=stored.served.fingerprint, fingerprint=served.name.fingerprint
            )
            self._catalogue.exchange(stored, Pointer(self._configured, served.name))
        with self._lock:
            self._enlist(served)
            self._served = served
        self._thread.start()

    def close(self) -> None:
        """The models too."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5.0)
        self._loader.shutdown(wait=True, cancel_futures=True)
        for model in (*self._loaded.values(), *self._retired):
            model.close()

    # --- for requests

    @property
    def served(self) -> ServedModel | None:
        """None before the first model is ready."""
        return self._served

    def take(self, namespace: str) -> Vocabulary:
        """The namespace's vocabulary of the served model, to be given back. See ServedModel.take."""
        while True:
            model = self._require()
            try:
                return model.take(namespace)
            except ModelClosed:
                if model is self._served:
                    raise

    def take_open(self, namespace: str) -> Vocabulary | None:
        """As ``take``, without waiting: None when the namespace must be loaded first."""
        return self._require().take_open(namespace)

    def _require(self) -> ServedModel:
        if self._served is None:
            raise ModelLoading("The service is not ready yet; /readyz tells why")
        return self._served

    # --- for operators

    def state(self) -> ModelsState:
        """Raises StoreUnavailable."""
        pointer = self._pointer()[1]
        with self._lock:
            return ModelsState(self._configured, pointer, dict(self._loaded), self._loading, self._problem)

    def count_everywhere(self) -> dict[str, tuple[int, dict[str, int]]]:
        """Namespace to its number of labels, and of vectors by fingerprint. Raises StoreUnavailable."""
        return {
            namespace: (self._catalogue.count_labels(namespace), self._catalogue.count_vectors(namespace))
            for namespace in self._catalogue.namespaces()
        }

    def prepare(self, spec: str) -> None:
        """Load a model beside the served one and encode every label with it, in the background.

        Raises ModelConflict while another is being loaded or prepared. The same spec again changes nothing.
        """
        _, pointer = self._pointer()
        with self._lock:
            if pointer.prepared is not None and pointer.prepared.spec == spec:
                return
            if self._loading is not None or pointer.prepared is not None:
                raise ModelConflict("Another model is being prepared; activate or drop it first")
            self._submit(spec, self._prepare)

    def activate(self) -> ModelName:
        """The prepared model serves from the next request on. Raises ModelConflict while labels lack its vector."""
        stored, pointer = self._pointer()
        if pointer.prepared is None:
            raise ModelConflict("No model is prepared")
        model = self._loaded_or_conflict(pointer.prepared)
        num_missing = self._missing_everywhere(model)
        if num_missing:
            raise ModelConflict(f"{num_missing} labels are not encoded by it yet", num_missing=num_missing)
        self._set(stored, replace(pointer, served=pointer.prepared, previous=pointer.served, prepared=None))
        return pointer.prepared

    def rollback(self) -> ModelName:
        """The previous model serves from the next request on; the one that served stays prepared."""
        stored, pointer = self._pointer()
        if pointer.previous is None:
            raise ModelConflict("There is no previous model")
        self._loaded_or_conflict(pointer.previous)
        self._set(stored, replace(pointer, served=pointer.previous, previous=None, prepared=pointer.served))
        return pointer.previous

    def drop(self, fingerprint: str) -> None:
        """Unload a model that does not serve and forget its vectors in every namespace.

        Raises ModelConflict, and NotFound when neither a model nor a vector has this fingerprint.
        """
        stored, pointer = self._pointer()
        namespaces = self._catalogue.namespaces()
        if fingerprint not in {name.fingerprint for name in pointer.names()} and not any(
            fingerprint in self._catalogue.count_vectors(namespace) for namespace in namespaces
        ):
            raise NotFound("No model and no label's vector has this fingerprint; GET /models lists them")
        if fingerprint in (pointer.served.fingerprint, self._require().facts.fingerprint):
            raise ModelConflict("This model serves; activate another first")
        left = {
            role: None if name is None or name.fingerprint == fingerprint else name
            for role, name in (("previous", pointer.previous), ("prepared", pointer.prepared))
        }
        self._set(stored, replace(pointer, previous=left["previous"], prepared=left["prepared"]))
        with self._lock:
            retired = list(self._retired)
        for model in retired:
            model.filler.close()  # so that it writes no more
        served = self._require()
        for namespace in namespaces:
            served.store_of(namespace).drop_generation(fingerprint)

    def other(self) -> ServedModel:
        """The loaded model to compare the served one with: the prepared, else the previous one."""
        _, pointer = self._pointer()
        name = pointer.prepared or pointer.previous
        if name is None:
            raise ModelConflict("No second model is loaded; prepare one")
        return self._loaded_or_conflict(name)

    # --- the pointer

    def _pointer(self) -> tuple[Pointer | None, Pointer]:
        """What is stored, and what this replica goes by: see Pointer's rule."""
        stored = self._catalogue.pointer()
        if stored is not None and stored.rules(self._configured):
            return stored, stored
        return stored, Pointer(self._configured, self._require().name)

    def _set(self, stored: Pointer | None, new: Pointer) -> None:
        if not self._catalogue.exchange(stored, new):
            raise ModelConflict("The models were changed at the same time elsewhere; look and try again")
        self._obey(new)

    def _follow(self) -> None:
        while not self._stopping.wait(FOLLOW_SECONDS):
            try:
                stored, pointer = self._pointer()
                if stored is pointer:
                    self._obey(pointer)
                self._close_retired()
            except StoreUnavailable:
                continue  # goes on with what it has; readiness tells
            except Exception:
                log.exception("following_the_models_failed")

    def _obey(self, pointer: Pointer) -> None:
        with self._lock:
            served = self._loaded.get(pointer.served.fingerprint)
            if served is not None and served is not self._served:
                log.info("model_served", model=served.facts.id, fingerprint=served.facts.fingerprint)
                self._served = served
            for name in pointer.names():
                if name.fingerprint not in self._loaded and self._loading is None:
                    if time.monotonic() >= self._retry_at:
                        self._submit(name.spec, lambda model, name=name: self._join(model, name))  # type: ignore[misc]
                    break
            wanted = {name.fingerprint for name in pointer.names()}
            for fingerprint, model in list(self._loaded.items()):
                if fingerprint not in wanted and model is not self._served:
                    model.filler.stop()
                    self._retired.append(self._loaded.pop(fingerprint))

    def _close_retired(self) -> None:
        with self._lock:
            idle = [model for model in self._retired if not model.num_users]
            self._retired = [model for model in self._retired if model not in idle]
        for model in idle:
            log.info("model_unloaded", model=model.facts.id, fingerprint=model.facts.fingerprint)
            model.close()

    # --- loading

    def _submit(self, spec: str, then: Callable[[ServedModel], None]) -> None:
        self._loading, self._problem = spec, None

        def work() -> None:
            try:
                then(self._load_spec(spec))
            except Exception as error:
                log.exception("model_not_loaded", internal=getattr(error, "internal", ""))
                detail = str(error) if isinstance(error, VidlexError) else "it could not be loaded; the log says why"
                with self._lock:
                    self._problem = detail
                    self._retry_at = time.monotonic() + RELOAD_SECONDS
            finally:
                with self._lock:
                    self._loading = None

        self._loader.submit(work)

    def _prepare(self, model: ServedModel) -> None:
        """A model that this replica was asked to prepare: tell the others."""
        stored, pointer = self._pointer()
        if model.facts.fingerprint in self._loaded or pointer.prepared is not None:
            model.close()
            raise ModelConflict("This model is loaded already, or another was prepared meanwhile")
        if not self._catalogue.exchange(stored, replace(pointer, prepared=model.name)):
            model.close()
            raise ModelConflict("The models were changed at the same time elsewhere")
        self._encode_everything(model)

    def _join(self, model: ServedModel, name: ModelName) -> None:
        """A model that the pointer names."""
        if model.facts.fingerprint != name.fingerprint:
            model.close()
            raise ModelConflict(
                "What was loaded is not what was prepared",
                internal=f"{name.spec} has fingerprint {model.facts.fingerprint} here, not {name.fingerprint}",
            )
        self._encode_everything(model)

    def _enlist(self, model: ServedModel) -> None:
        model.on_written = self._complete_others
        self._loaded[model.facts.fingerprint] = model

    def _encode_everything(self, model: ServedModel) -> None:
        with self._lock:
            self._enlist(model)
        log.info("model_loaded_beside", model=model.facts.id, fingerprint=model.facts.fingerprint)
        threading.Thread(target=self._encode_namespaces, args=(model,), name="vidlex-prepare", daemon=True).start()

    def _encode_namespaces(self, model: ServedModel) -> None:
        done: set[str] = set()
        while not self._stopping.is_set() and self._loaded.get(model.facts.fingerprint) is model:
            try:
                left = [namespace for namespace in self._catalogue.namespaces() if namespace not in done]
            except StoreUnavailable:
                self._stopping.wait(1.0)
                continue
            if not left:
                log.info("labels_encoded_by_prepared_model", model=model.facts.id, namespaces=len(done))
                return
            for namespace in left:
                self._finish(model, namespace)
                done.add(namespace)

    def _finish(self, model: ServedModel, namespace: str) -> None:
        """Until every label of the namespace has its vector. It is the namespace's load that finds the missing."""
        while not self._stopping.is_set():
            try:
                vocabulary = model.take(namespace)
            except ModelClosed:
                return
            except VidlexError as error:
                log.warning("labels_wait_for_encoding", namespace=namespace, code=error.code)
                self._stopping.wait(1.0)
                continue
            try:
                while model.awaited(vocabulary) and not self._stopping.wait(0.05):
                    if self._loaded.get(model.facts.fingerprint) is not model:
                        return  # dropped meanwhile
            finally:
                vocabulary.give_back()
            return

    def _missing_everywhere(self, model: ServedModel) -> int:
        """Labels that lack the model's vector, after what is just being written has had a moment."""
        deadline = time.monotonic() + COMPLETE_SECONDS
        num_missing = 0
        for namespace in self._catalogue.namespaces():
            vocabulary = model.take(namespace)
            try:
                vocabulary.sync.caught_up(vocabulary.store.revision(), max(0.0, deadline - time.monotonic()))
                while (missing := model.missing(vocabulary)) and time.monotonic() < deadline:
                    self._stopping.wait(0.02)
                num_missing += len(missing)
            finally:
                vocabulary.give_back()
        return num_missing

    def _loaded_or_conflict(self, name: ModelName) -> ServedModel:
        model = self._loaded.get(name.fingerprint)
        if model is None:
            raise ModelConflict("This replica has not loaded the model yet; try again in a moment")
        return model

    def _complete_others(self, writer: ServedModel, namespace: str, labels: Sequence[Label]) -> None:
        """Give labels that one model has just stored the vectors of the other loaded ones, before the answer.

        Whatever fails here is only late: the other model's follower sees the label without a vector and fills it in.
        """
        with self._lock:
            others = [model for model in self._loaded.values() if model is not writer]
        for model in others:
            try:
                model.complete(namespace, labels)
            except VidlexError as error:
                log.warning("label_left_for_later", namespace=namespace, code=error.code, internal=error.internal)
