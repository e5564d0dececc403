"""What /readyz says: each condition of being ready, read from flags alone."""

from __future__ import annotations

from dataclasses import dataclass

from vidlex.service.engine.device_worker import OwnerState
from vidlex.service.engine.engine import Engine
from vidlex.service.labels.index.approximate import RECALL_AT
from vidlex.service.models.served_model import ModelFacts, ServedModel, Vocabulary
from vidlex.service.schemas.health import CheckView, ReadyView


@dataclass(frozen=True)
class State:
    """The running parts at one moment."""

    stopping: bool
    progress: str
    """The step of the start that is at work; empty when the service has started."""
    failed: bool
    """The start has ended for good at ``progress``."""
    store_answers: bool
    schema_ok: bool
    model: ServedModel | None
    num_decoders: int
    max_decoders: int
    decoding: bool


def readiness(state: State) -> ReadyView:
    """Never waits."""
    facts = None if state.model is None else state.model.facts
    engine = None if state.model is None else state.model.engine
    vocabularies = [] if state.model is None else state.model.open_vocabularies()
    lost = [v.namespace for v in vocabularies if not v.sync.healthy]
    num_labels = sum(len(v.index) for v in vocabularies)
    alive = f"{state.num_decoders} of {state.max_decoders} alive"
    checks = {
        "store": _check(state.store_answers, "answers", "does not answer"),
        "schema": _check(state.schema_ok, "up to date", "not checked yet"),
        "model": _check(facts is not None, _model(facts), "not loaded yet"),
        "encoder": _check(
            engine is not None and engine.healthy,
            _working(engine),
            _trouble(engine),
        ),
        "index": _check(
            bool(vocabularies) and not lost,
            f"{num_labels} labels{_approximate(vocabularies)}",
            "not loaded yet" if not vocabularies else "not in touch with the store",
        ),
        "decoders": _check(state.decoding, alive, f"{alive}, and one stays away"),
    }
    if state.stopping:
        return ReadyView(status="stopping", checks=checks)
    if state.failed:
        checks["start"] = CheckView(ok=False, detail=f"failed while {state.progress}; the log says why")
        return ReadyView(status="not_ready", checks=checks)
    if state.progress:
        checks["start"] = CheckView(ok=False, detail=state.progress)
        return ReadyView(status="starting", checks=checks)
    return ReadyView(status="ready" if all(c.ok for c in checks.values()) else "not_ready", checks=checks)


def _approximate(vocabularies: list[Vocabulary]) -> str:
    """How well approximate searches find what exact ones do, as measured; nothing where all are exact."""
    facts = [v.index.approximate for v in vocabularies]
    recalls = [f.recall for f in facts if f is not None and not f.exact]
    return f", searched approximately: recall@{RECALL_AT} {min(recalls):.3f}" if recalls else ""


def _model(facts: ModelFacts | None) -> str:
    return "" if facts is None else f"{facts.id} {facts.encoder}".rstrip()


_STATES: dict[OwnerState, str] = {
    "works": "the last forward pass worked",
    "fails": "the last forward pass failed",
    "hangs": "a forward pass does not come back",
    "ended": "not running",
}


def _working(engine: Engine | None) -> str:
    """Some device works; those that do not are named."""
    states = [] if engine is None else engine.states
    if len(states) < 2:
        return _STATES["works"]
    bad = [f"; {device} is out: {_STATES[state]}" for device, state in states if state != "works"]
    return f"{len(states) - len(bad)} of {len(states)} devices work{''.join(bad)}"


def _trouble(engine: Engine | None) -> str:
    if engine is None or not engine.alive:
        return _STATES["ended"]
    return _STATES["hangs" if all(state == "hangs" for _, state in engine.states) else "fails"]


def _check(ok: bool, good: str, bad: str) -> CheckView:
    return CheckView(ok=ok, detail=good if ok else bad)
