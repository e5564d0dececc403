"""Admission: the bound on classify requests, Retry-After and its slots, deadlines."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.serving import assert_problem, classify, colour_video, serving
from vidlex.service.errors import DeadlineExceeded, Overloaded, ShareExceeded
from vidlex.service.http.admission import Admission, Entry


@contextmanager
def at_work(admission: Admission, client: str = "client") -> Iterator[None]:
    with admission.enter(client) as entry, entry.admit():
        yield


def retry_after(admission: Admission, client: str) -> int:
    """Seconds in the refusal of a request."""
    with pytest.raises(Overloaded) as error, admission.enter(client):
        pass
    assert error.value.retry_after_seconds is not None
    return error.value.retry_after_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fill(admission: Admission, stack: ExitStack, num_requests: int) -> None:
    """With requests of different clients."""
    for number in range(num_requests):
        stack.enter_context(at_work(admission, f"at work {number}"))


def test_slots_are_handed_out_at_half_the_rate_of_finished_requests() -> None:
    """Two workers and half a second a request: 4 requests finish in a second."""
    with ExitStack() as stack:
        admission = Admission(8, 2, clock=Clock())
        fill(admission, stack, 8)
        seconds = [retry_after(admission, f"client-{number}") for number in range(1200)]
        assert seconds[:8] == [1, 1, 2, 2, 3, 3, 4, 4]
        assert seconds[599] == 300 and set(seconds[600:]) == {300}


def test_the_measured_rate_sets_the_slots() -> None:
    clock = Clock()
    admission = Admission(4, 1, clock=clock)
    for _ in range(40):
        with at_work(admission):
            clock.now += 3.0
    assert admission.seconds_until_done(2) == pytest.approx(6.0)
    with ExitStack() as stack:
        fill(admission, stack, 4)
        assert [retry_after(admission, f"client-{number}") for number in range(3)] == [6, 12, 18]


def test_one_place_is_never_reserved() -> None:
    admission = Admission(1, 2, clock=Clock())
    with at_work(admission):
        retry_after(admission, "first")
    with at_work(admission, "second"):
        pass


def test_half_of_the_places_are_reserved_for_returning_clients() -> None:
    clock = Clock()
    admission = Admission(4, 1, clock=clock)
    with ExitStack() as stack:
        fill(admission, stack, 4)
        assert retry_after(admission, "returning") == 1
        assert retry_after(admission, "late") == 2
    with ExitStack() as stack:
        clock.now += 1.0
        fill(admission, stack, 2)
        assert retry_after(admission, "new") >= 1  # two places are free, and two slots are outstanding
        with at_work(admission, "returning"):
            assert retry_after(admission, "returning") >= 1  # a slot is used once
        clock.now += 300.0
        with at_work(admission, "new"):  # expired slots reserve nothing
            assert admission.num_slots == 0


def test_a_client_holds_at_most_four_slots() -> None:
    admission = Admission(4, 1, clock=Clock())
    with ExitStack() as stack:
        fill(admission, stack, 4)
        seconds = [retry_after(admission, "greedy") for _ in range(1000)]
        assert admission.num_slots == 4
        assert seconds[:4] == [1, 2, 3, 4] and set(seconds[4:]) == {4}
        assert retry_after(admission, "modest") == 5


def test_a_request_counts_while_it_uploads() -> None:
    admission = Admission(2, 1, clock=Clock())
    with admission.enter("uploading") as uploading, at_work(admission):
        assert retry_after(admission, "other") >= 1
        with uploading.admit():
            assert admission.num_working == 2
    assert admission.num_working == 0


def test_uploads_take_at_most_half_of_the_places() -> None:
    admission = Admission(4, 1, clock=Clock())
    with ExitStack() as stack:
        entries = [stack.enter_context(admission.enter(f"slow-{number}")) for number in range(20)]
        fill(admission, stack, 2)
        with pytest.raises(Overloaded), admission.enter("new"):
            pass
        stack.enter_context(entries[0].admit())
        stack.enter_context(entries[1].admit())
        with pytest.raises(Overloaded), entries[2].admit():
            pass


def test_one_client_holds_half_of_the_places_and_gets_a_time_without_a_place() -> None:
    admission = Admission(8, 2, clock=Clock())
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(admission.enter("greedy"))  # uploads count
        for _ in range(2):
            stack.enter_context(at_work(admission, "greedy"))
        with pytest.raises(ShareExceeded) as error, admission.enter("greedy"):
            pass
        assert error.value.extra == {"limit": "requests"}
        assert error.value.retry_after_seconds == 1
        seconds = [retry_after(admission, "greedy") for _ in range(100)]
        assert set(seconds) <= {1, 2} and admission.num_slots == 4
        for number in range(4):
            stack.enter_context(at_work(admission, f"modest {number}"))  # no slot keeps a place from them
        with pytest.raises(Overloaded) as full, admission.enter("late"):
            pass
        assert (full.value.code, full.value.extra) == ("overloaded", {"limit": "requests"})


def test_there_are_places_next_to_greedy_clients() -> None:
    admission = Admission(64, 2, clock=Clock())
    with ExitStack() as stack:
        for number in range(4):
            with pytest.raises(ShareExceeded):
                for _ in range(64):
                    stack.enter_context(at_work(admission, f"greedy {number}"))
        assert admission.num_working == 32 + 16 + 8 + 4
        with at_work(admission, "modest"):
            pass


def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once() -> None:
    admission = Admission(8, 1)
    admission.check_deadline("client", 0.001)  # nothing is waiting
    with at_work(admission), at_work(admission):
        admission.check_deadline("client", 2.0)
        with pytest.raises(DeadlineExceeded):
            admission.check_deadline("client", 1.4)


def test_the_requests_of_one_client_do_not_break_the_deadline_of_another() -> None:
    """Clients are served in turn: a new one waits for no more than one request of each other."""
    admission = Admission(64, 2)
    with ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(at_work(admission, "greedy"))
        with pytest.raises(DeadlineExceeded):
            admission.check_deadline("greedy", 5.0)
        admission.check_deadline("modest", 0.1)
        for number in range(8):
            stack.enter_context(at_work(admission, f"other {number}"))
        with pytest.raises(DeadlineExceeded):
            admission.check_deadline("modest", 0.1)


def test_a_deadline_over_http(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as client:
        video = colour_video(tmp_path / "video.mp4", "red")
        assert classify(client, video, deadline_ms=60_000).status_code == 200
        assert_problem(classify(client, video, deadline_ms=1), 504, "deadline_exceeded")
        assert classify(client, video, deadline_ms=0).status_code == 422
        client.headers["X-Vidlex-Deadline-Ms"] = "1"
        assert_problem(classify(client, video, deadline_ms=60_000), 504, "deadline_exceeded")
        client.headers["X-Vidlex-Deadline-Ms"] = "soon"
        assert_problem(classify(client, video), 422, "invalid_parameter")


class Crowd:
    """2 workers, half a second a video, 16 places; half of 64 clients obey Retry-After, half retry after 0.1 s."""

    WORKERS, SECONDS, PLACES, CLIENTS, RETRY_SECONDS = 2, 0.5, 16, 64, 0.1

    def __init__(self) -> None:
        self.clock = Clock()
        self.admission = Admission(self.PLACES, self.WORKERS, clock=self.clock)
        self.events: list[tuple[float, int, str, int]] = []
        self.order = itertools.count()
        self.queue: deque[int] = deque()
        self.idle_workers = self.WORKERS
        self.places: dict[int, ExitStack] = {}
        self.admitted_at: dict[int, float] = {}
        self.in_slot: dict[int, bool] = {}
        self.num_done = 0
        self.longest_seconds = 0.0
        self.returned_admitted: list[bool] = []

    def at(self, seconds: float, kind: str, client: int) -> None:
        heapq.heappush(self.events, (self.clock.now + seconds, next(self.order), kind, client))

    def run(self, seconds: float) -> None:
        for client in range(self.CLIENTS):
            self.at(client * 0.01, "ask", client)
        end = self.clock.now + seconds
        while self.events[0][0] < end:
            self.clock.now, _, kind, client = heapq.heappop(self.events)
            self.ask(client) if kind == "ask" else self.finish(client)
            while self.idle_workers and self.queue:
                self.idle_workers -= 1
                self.at(self.SECONDS, "finish", self.queue.popleft())

    def ask(self, client: int) -> None:
        obeys = client % 2 == 0
        place = ExitStack()
        try:
            place.enter_context(at_work(self.admission, f"client-{client}"))
        except Overloaded as error:
            if self.in_slot.pop(client, False):
                self.returned_admitted.append(False)
            assert error.retry_after_seconds is not None
            if obeys:
                self.in_slot[client] = error.retry_after_seconds < 300
            self.at(error.retry_after_seconds if obeys else self.RETRY_SECONDS, "ask", client)
            return
        if self.in_slot.pop(client, False):
            self.returned_admitted.append(True)
        self.places[client] = place
        self.admitted_at[client] = self.clock.now
        self.queue.append(client)

    def finish(self, client: int) -> None:
        self.idle_workers += 1
        self.num_done += 1
        self.longest_seconds = max(self.longest_seconds, self.clock.now - self.admitted_at[client])
        self.places.pop(client).close()
        self.at(0.0, "ask", client)


def test_obeying_clients_are_admitted_among_clients_that_ignore_retry_after() -> None:
    crowd = Crowd()
    crowd.run(240.0)
    capacity = 240.0 * Crowd.WORKERS / Crowd.SECONDS
    assert crowd.num_done >= 0.95 * capacity
    assert crowd.longest_seconds <= 1.1 * Crowd.PLACES * Crowd.SECONDS / Crowd.WORKERS
    assert len(crowd.returned_admitted) > 80
    assert sum(crowd.returned_admitted) >= 0.95 * len(crowd.returned_admitted)


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_at_four_times_the_capacity_is_admitted_on_return(seed: int) -> None:
    """Each client retries once, in its slot. Whole seconds bring them back in groups; encoding is in batches."""
    rng = random.Random(seed)
    clock, events, order = Clock(), [], itertools.count()  # type: ignore[var-annotated]
    admission = Admission(16, 2, clock=clock)
    queue: list[ExitStack] = []
    admitted: list[bool] = []
    encoding = False

    def at(seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(events, (clock.now + seconds, next(order), what))

    def arrive(client: str, returning: bool) -> None:
        place = ExitStack()
        try:
            entry = place.enter_context(admission.enter(client))
        except Overloaded as error:
            if returning:
                admitted.append(False)
            elif (error.retry_after_seconds or 300) < 300:
                at(float(error.retry_after_seconds or 0), lambda: arrive(client, True))
            return
        if returning:
            admitted.append(True)
        at(rng.uniform(0.01, 0.1), lambda: uploaded(place, entry, returning))

    def uploaded(place: ExitStack, entry: Entry, returning: bool) -> None:
        try:
            place.enter_context(entry.admit())
        except Overloaded:
            assert not returning  # its place was reserved
            place.close()
        else:
            at(0.02, lambda: decoded(place))

    def decoded(place: ExitStack) -> None:
        queue.append(place)
        encode()

    def encode() -> None:
        nonlocal encoding
        if queue and not encoding:
            encoding = True
            batch = [queue.pop(0) for _ in range(min(8, len(queue)))]
            at(0.04 * len(batch), lambda: done(batch))

    def done(batch: list[ExitStack]) -> None:
        nonlocal encoding
        encoding = False
        for place in batch:
            place.close()
        encode()

    for number in range(1000):
        at(number * 0.01, lambda number=number: arrive(f"client-{number}", False))  # type: ignore[misc]
    while events:
        clock.now, _, what = heapq.heappop(events)
        what()
    assert len(admitted) > 200
    assert sum(admitted) >= 0.97 * len(admitted)
