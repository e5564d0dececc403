"""The checks of /readyz."""

from __future__ import annotations

from dataclasses import dataclass

from vidlex.service.decode.isolation.report import Isolation
from vidlex.service.engine.device_worker import DeviceWorkerState
from vidlex.service.engine.engine import Engine
from vidlex.service.labels.index.approximate import RECALL_AT
from vidlex.service.models.served_model import ModelFacts, ServedModel, Vocabulary
from vidlex.service.schemas.health import CheckView, ReadyView


@dataclass(frozen=True)
class State:
    is_stopping: bool
    step: str  # of the start; empty once the service has started
    has_failed: bool  # the start has ended at ``step``
    store_problem: str  # empty if the store can be used
    store_id: str  # the beginning of its id, which `vidlex keys create --direct` compares
    is_schema_checked: bool
    model: ServedModel | None
    num_decoders: int
    max_decoders: int
    are_decoders_ok: bool
    isolation: Isolation | None  # of the decode processes; None before the first has started


def readiness(state: State) -> ReadyView:
    facts = None if state.model is None else state.model.facts
    engine = None if state.model is None else state.model.engine
    vocabularies = [] if state.model is None else state.model.open_vocabularies()
    is_synced = all(v.sync.is_healthy for v in vocabularies)
    num_labels = sum(len(v.index) for v in vocabularies)
    alive = f"{state.num_decoders} of {state.max_decoders} alive"
    checks = {
        "store": _check(not state.store_problem, f"answers; store {state.store_id}", state.store_problem),
        "schema": _check(state.is_schema_checked, "up to date", "not checked yet"),
        "model": _check(facts is not None, _model_detail(facts), "not loaded yet"),
        "encoder": _check(
            engine is not None and engine.is_healthy,
            _healthy_detail(engine),
            _failing_detail(engine),
        ),
        "index": _check(
            bool(vocabularies) and is_synced,
            f"{num_labels} labels{_quarantine_detail(vocabularies)}{_recall_detail(vocabularies)}",
            "not loaded yet" if not vocabularies else "out of sync with the store",
        ),
        "decoders": _check(state.are_decoders_ok, alive, f"{alive}; one cannot be restarted"),
        "isolation": _check(state.isolation is not None, str(state.isolation), "not known yet"),
    }
    if state.is_stopping:
        return ReadyView(status="stopping", checks=checks)
    if state.has_failed:
        checks["start"] = CheckView(ok=False, detail=f"failed while {state.step}; see the log")
        return ReadyView(status="not_ready", checks=checks)
    if state.step:
        checks["start"] = CheckView(ok=False, detail=state.step)
        return ReadyView(status="starting", checks=checks)
    return ReadyView(status="ready" if all(c.ok for c in checks.values()) else "not_ready", checks=checks)


def _quarantine_detail(vocabularies: list[Vocabulary]) -> str:
    num = sum(v.sync.num_quarantined for v in vocabularies)
    return f", {num} quarantined: `vidlex labels verify`" if num else ""


def _recall_detail(vocabularies: list[Vocabulary]) -> str:
    facts = [v.index.recall_stats for v in vocabularies]
    recalls = [f.recall for f in facts if f is not None and not f.is_exact]
    return f", approximate search, recall@{RECALL_AT} {min(recalls):.3f}" if recalls else ""


def _model_detail(facts: ModelFacts | None) -> str:
    return "" if facts is None else f"{facts.id} {facts.encoder}".rstrip()


_STATES: dict[DeviceWorkerState, str] = {
    "healthy": "the last forward pass succeeded",
    "failing": "the last forward pass failed",
    "stuck": "a forward pass does not return",
    "stopped": "not running",
}


def _healthy_detail(engine: Engine | None) -> str:
    states = [] if engine is None else engine.device_states
    if len(states) < 2:
        return _STATES["healthy"]
    bad = [f"; {device}: {_STATES[state]}" for device, state in states if state != "healthy"]
    return f"{len(states) - len(bad)} of {len(states)} devices healthy{''.join(bad)}"


def _failing_detail(engine: Engine | None) -> str:
    if engine is None or not engine.is_alive:
        return _STATES["stopped"]
    return _STATES["stuck" if all(state == "stuck" for _, state in engine.device_states) else "failing"]


def _check(ok: bool, good: str, bad: str) -> CheckView:
    return CheckView(ok=ok, detail=good if ok else bad)
