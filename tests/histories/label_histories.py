"""Clients that write and read labels over HTTP and record what they saw; the model that their history must agree with.

Labels are written in slots of two names each. A slot is one object for the checker: a rename moves a label between its
names. Every write sets another threshold, so that each read tells which write it saw.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import httpx

from support.linearizability import Operation, find_order
from support.serving import classify

MAX_UNKNOWN = 5  # operations of one slot; each may double the work of the checker
MAX_OPERATIONS = 250
NUM_SLOTS = 5

State = tuple[tuple[str, str, float], ...]  # (name, id, threshold), sorted


def step(state: State, operation: Operation) -> Iterator[State]:
    """The label store, as far as one slot goes."""
    result = operation.result
    if operation.kind in _READS:
        if result == _READS[operation.kind](state, *operation.args):
            yield state
        return
    possible, after = _WRITES[operation.kind](state, *operation.args)
    if result in (None, possible):
        yield after


def _register(state: State, name: str, value: float, label_id: str) -> tuple[Any, State]:
    for other_name, other_id, _ in state:
        if other_name == name:
            return ("exists", other_id), state
    return ("created", label_id), _with(state, (name, label_id, value))


def _change(state: State, label_id: str, new_name: str | None, value: float) -> tuple[Any, State]:
    old_name = next((name for name, i, _ in state if i == label_id), None)
    if old_name is None:
        return "missing", state
    name = new_name or old_name
    if any(other == name and i != label_id for other, i, _ in state):
        return "conflict", state
    return "changed", _with(_without(state, label_id), (name, label_id, value))


def _remove(state: State, label_id: str) -> tuple[Any, State]:
    after = _without(state, label_id)
    return "missing" if after == state else "removed", after


_WRITES: dict[str, Callable[..., tuple[Any, State]]] = {"register": _register, "change": _change, "remove": _remove}
_READS: dict[str, Callable[..., Any]] = {
    "get": lambda state, label_id: next(((name, value) for name, i, value in state if i == label_id), "missing"),
    "find": lambda state, name: next(((i, value) for other, i, value in state if other == name), "missing"),
    "snapshot": lambda state: state,
}


def _without(state: State, label_id: str) -> State:
    return tuple(label for label in state if label[1] != label_id)


def _with(state: State, label: tuple[str, str, float]) -> State:
    return tuple(sorted((*state, label)))


@dataclass
class Slot:
    number: int
    operations: list[Operation] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)  # that clients have seen, oldest first
    num_unknown: int = 0

    @property
    def names(self) -> tuple[str, str]:
        return f"slot {self.number} first", f"slot {self.number} second"

    @property
    def category(self) -> str:
        return f"slot {self.number}"

    def see(self, label_id: str) -> None:
        if label_id not in self.ids:
            self.ids.append(label_id)

    def checked_operations(self) -> list[Operation]:
        """Registrations of unknown outcome get the id under which their threshold was ever seen."""
        seen: dict[float, str] = {}
        for operation in self.operations:
            match operation.kind, operation.result:
                case "find", (str(label_id), float(value)):
                    seen[value] = label_id
                case "snapshot", labels:
                    seen |= {value: label_id for _, label_id, value in labels}
        found = []
        for number, operation in enumerate(self.operations):
            if operation.kind != "register":
                found.append(operation)
                continue
            name, value = operation.args
            label_id = seen.get(value, f"never seen {number}")
            if operation.result is not None and operation.result[0] == "created":
                label_id = operation.result[1]
            found.append(replace(operation, args=(name, value, label_id)))
        return found


@dataclass(frozen=True)
class Write:
    """An acknowledged one."""

    invoked: float
    returned: float
    revision: int
    is_own: bool  # the revision is the write's own; of a removal it may be a later one


class Recorder:
    """Thread-safe. Clients write while ``go`` is set."""

    def __init__(self, urls: Sequence[str], video: bytes, seed: int) -> None:
        self._urls = urls
        self._video = video
        self._seed = seed
        self._lock = threading.Lock()
        self._values = count(1)
        self._numbers = count()
        self._slots = [Slot(next(self._numbers)) for _ in range(NUM_SLOTS)]
        self.all_slots = list(self._slots)
        self.writes: list[Write] = []
        self.num_stale = 0  # classifications older than min_revision
        self.stop = threading.Event()

    def run(self, number: int) -> None:
        rng = random.Random(self._seed * 1000 + number)
        with self._clients(20) as clients:
            while not self.stop.is_set():
                with self._lock:
                    slot = rng.choice(self._slots)
                kind = rng.choices(
                    ["register", "change", "rename", "remove", "get", "find", "snapshot"], [4, 3, 3, 2, 3, 2, 1]
                )[0]
                self.perform(rng.choice(clients), slot, kind, rng)
                if slot.num_unknown >= MAX_UNKNOWN or len(slot.operations) >= MAX_OPERATIONS:
                    self._retire(slot)

    def finish(self) -> None:
        """Reads everything once more, by each replica."""
        rng = random.Random(0)
        with self._clients(60) as clients:
            for reader in clients:
                for slot in self.all_slots:
                    self._find(reader, slot)
                    for label_id in slot.ids:
                        self._get(reader, slot, label_id)
                for slot in self._slots:
                    self.perform(reader, slot, "snapshot", rng)

    @contextmanager
    def _clients(self, timeout_seconds: float) -> Iterator[list[_Client]]:
        with ExitStack() as stack:
            clients = [httpx.Client(base_url=url, timeout=timeout_seconds, trust_env=False) for url in self._urls]
            yield [_Client(stack.enter_context(client)) for client in clients]

    def perform(self, client: _Client, slot: Slot, kind: str, rng: random.Random) -> None:
        value = next(self._values) / 10**6
        label_id = rng.choice(slot.ids[-4:]) if slot.ids else None
        name = rng.choice(slot.names)
        if kind == "register" or (label_id is None and kind in ("change", "rename", "remove", "get")):
            self._register(client, slot, name, value)
        elif kind in ("change", "rename"):
            self._change(client, slot, str(label_id), name if kind == "rename" else None, value)
        elif kind == "remove":
            self._remove(client, slot, str(label_id))
        elif kind == "get":
            self._get(client, slot, str(label_id))
        elif kind == "find":
            self._find(client, slot)
        else:
            self._classify(client, slot)

    # --- operations

    def _register(self, client: _Client, slot: Slot, name: str, value: float) -> None:
        body = {"name": name, "threshold": value, "categories": [slot.category]}
        invoked, answer = client.send("POST", "/labels", json=body)
        result: Any = None
        if answer is not None and answer.status_code == 201:
            result = ("created", answer.json()["id"])
            self._acknowledge(invoked, answer.json()["revision"])
        elif answer is not None and answer.status_code == 409:
            result = ("exists", answer.json()["existing_id"])
        self._record(slot, "register", (name, value), result, invoked)
        if result is not None:
            with self._lock:
                slot.see(result[1])

    def _change(self, client: _Client, slot: Slot, label_id: str, name: str | None, value: float) -> None:
        body = {"threshold": value} | ({} if name is None else {"name": name})
        invoked, answer = client.send("PATCH", f"/labels/{label_id}", json=body)
        result = None
        if answer is not None:
            result = {200: "changed", 404: "missing", 409: "conflict"}[answer.status_code]
            if result == "changed":
                self._acknowledge(invoked, answer.json()["revision"])
        self._record(slot, "change", (label_id, name, value), result, invoked)

    def _remove(self, client: _Client, slot: Slot, label_id: str) -> None:
        invoked, answer = client.send("DELETE", f"/labels/{label_id}")
        result = None
        if answer is not None:
            result = {204: "removed", 404: "missing"}[answer.status_code]
            if result == "removed":
                self._acknowledge(invoked, int(answer.headers["X-Vidlex-Revision"]), is_own=False)
        self._record(slot, "remove", (label_id,), result, invoked)

    def _get(self, client: _Client, slot: Slot, label_id: str) -> None:
        invoked, answer = client.send("GET", f"/labels/{label_id}")
        if answer is not None:
            label = answer.json()
            result = (label["name"], label["threshold"]) if answer.status_code == 200 else "missing"
            self._record(slot, "get", (label_id,), result, invoked)

    def _find(self, client: _Client, slot: Slot) -> None:
        invoked, answer = client.send("GET", "/labels", params={"category": slot.category})
        if answer is None:
            return
        assert answer.status_code == 200, answer.text
        found = {label["name"]: (label["id"], label["threshold"]) for label in answer.json()["data"]}
        for name in slot.names:
            self._record(slot, "find", (name,), found.get(name, "missing"), invoked)
        with self._lock:
            for label_id, _ in found.values():
                slot.see(label_id)

    def _classify(self, client: _Client, slot: Slot) -> None:
        """What a replica's index has of the slot, not before the newest acknowledged write of all."""
        with self._lock:
            newest = max(self.writes, key=lambda write: write.revision, default=Write(0.0, 0.0, 0, True))
        try:
            answer = classify(client.http, self._video, top_k=0, min_revision=newest.revision)
        except httpx.TransportError:
            return
        if answer.status_code in (409, 429) or answer.status_code >= 500:  # behind the revision, or not ready
            return
        document = answer.raise_for_status().json()
        self.num_stale += document["vocabulary_revision"] < newest.revision
        labels = [label for label in document["labels"] if label["name"] in slot.names]
        state = tuple(sorted((label["name"], label["id"], label["threshold"]) for label in labels))
        self._record(slot, "snapshot", (), state, newest.invoked)

    # --- records

    def _record(self, slot: Slot, kind: str, args: tuple[Any, ...], result: Any, invoked: float) -> None:
        returned = math.inf if result is None else time.monotonic()
        with self._lock:
            slot.num_unknown += result is None
            slot.operations.append(Operation(kind, args, result, invoked, returned))

    def _acknowledge(self, invoked: float, revision: int, *, is_own: bool = True) -> None:
        with self._lock:
            self.writes.append(Write(invoked, time.monotonic(), revision, is_own))

    def _retire(self, slot: Slot) -> None:
        with self._lock:
            if slot in self._slots:
                self._slots[self._slots.index(slot)] = new = Slot(next(self._numbers))
                self.all_slots.append(new)


@dataclass(frozen=True)
class _Client:
    http: httpx.Client

    def send(self, method: str, path: str, **arguments: Any) -> tuple[float, httpx.Response | None]:
        """(when it was sent, the answer); None if the outcome is unknown."""
        invoked = time.monotonic()
        try:
            answer = self.http.request(method, path, **arguments)
        except httpx.TransportError:
            time.sleep(0.05)
            return invoked, None
        if answer.status_code >= 500 or answer.status_code == 429:
            time.sleep(0.05)
            return invoked, None
        return invoked, answer


def check_history(recorder: Recorder) -> dict[str, int]:
    """Raises AssertionError unless the history agrees with one store; returns the numbers of operations by kind."""
    numbers = {"unknown": 0}
    for slot in recorder.all_slots:
        operations = slot.checked_operations()
        for operation in operations:
            numbers[operation.kind] = numbers.get(operation.kind, 0) + 1
            numbers["unknown"] += not operation.is_known
        if find_order(operations, (), step) is None:
            lines = [f"{o.invoked:.4f} {o.returned:.4f} {o.kind} {o.args} -> {o.result}" for o in operations]
            raise AssertionError(f"no order of slot {slot.number}:\n" + "\n".join(sorted(lines)))
    assert recorder.num_stale == 0
    own = [write.revision for write in recorder.writes if write.is_own]
    assert len(own) == len(set(own)), "two writes have one revision"
    newest, returned = 0, iter(sorted(recorder.writes, key=lambda write: write.returned))
    before = next(returned, None)
    for write in sorted(recorder.writes, key=lambda write: write.invoked):
        while before is not None and before.returned < write.invoked:
            newest, before = max(newest, before.revision), next(returned, None)
        assert write.revision > newest, "a write has a lower revision than one that was acknowledged before it began"
    return numbers
