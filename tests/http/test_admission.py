"""Who is let in, who is told to come back when, and deadlines."""

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
from vidlex.service.errors import DeadlineExceeded, Overloaded
from vidlex.service.http.admission import Admission, Entry


@contextmanager
def at_work(admission: Admission, client: str = "somebody") -> Iterator[None]:
    with admission.enter(client) as entry, entry.admit():
        yield


def refused(admission: Admission, client: str) -> int:
    """The Retry-After that the client is told."""
    with pytest.raises(Overloaded) as error, admission.enter(client):
        pass
    assert error.value.retry_after_seconds is not None
    return error.value.retry_after_seconds


def test_refused_clients_are_told_to_come_back_one_after_another() -> None:
    """Two workers, half a second each: 4 places in a second, of which 3.2 are promised."""
    with ExitStack() as work:
        admission = Admission(8, 2, clock=Clock())  # keeps 4
        for _ in range(8):
            work.enter_context(at_work(admission))
        told = [refused(admission, f"client-{number}") for number in range(1200)]
        assert told[:11] == [1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]  # 3.2 a second, from a quarter of a second on
        assert max(told) == 300
    admission = Admission(1, 2, clock=Clock())  # keeps none: two who come at once find one place at best
    with at_work(admission):
        told = [refused(admission, f"client-{number}") for number in range(310)]
    assert told == [*range(1, 301), *[300] * 10]
    with at_work(admission):  # and a free place is given to whoever comes
        pass


def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once() -> None:
    admission = Admission(8, 1)
    admission.check_deadline(0.001)  # nobody waits: it may be tried
    with at_work(admission), at_work(admission):
        admission.check_deadline(2.0)
        with pytest.raises(DeadlineExceeded):
            admission.check_deadline(1.4)


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


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_promised_place_is_kept_from_newcomers_until_it_is_not_used() -> None:
    clock = Clock()
    admission = Admission(4, 1, clock=clock)  # keeps two
    with ExitStack() as work:
        for _ in range(4):
            work.enter_context(at_work(admission))
        assert refused(admission, "patient") == 2
        clock.now += 2.0
        work.close()
        for _ in range(3):
            work.enter_context(at_work(admission, "newcomer"))
        assert refused(admission, "newcomer") >= 1  # one place is free, and promised
        with at_work(admission, "patient"):
            assert refused(admission, "patient") >= 1  # a promise is for one request
        clock.now += 30.0
        with at_work(admission, "late newcomer"):  # nobody came for it
            pass


def test_one_client_cannot_hold_all_promises() -> None:
    admission = Admission(4, 1, clock=Clock())
    with at_work(admission), at_work(admission), at_work(admission), at_work(admission):
        told = [refused(admission, "greedy") for _ in range(1000)]
        assert admission.num_promises == 4
        assert told[:4] == [2, 2, 3, 4] and set(told[4:]) == {4}
        assert refused(admission, "modest") == 4


class Crowd:
    """A service of 2 workers, half a second a video, 16 places, and 64 clients that are never content: half come back
    when told, half ask again at once. Time is made up; only the admission is real."""

    WORKERS, SECONDS, PLACES, CLIENTS, IMPATIENCE = 2, 0.5, 16, 64, 0.1

    def __init__(self) -> None:
        self.clock = Clock()
        self.admission = Admission(self.PLACES, self.WORKERS, clock=self.clock)
        self.events: list[tuple[float, int, str, int]] = []
        self.order = itertools.count()
        self.queue: deque[int] = deque()
        self.idle_workers = self.WORKERS
        self.places: dict[int, ExitStack] = {}
        self.admitted_at: dict[int, float] = {}
        self.came_as_told: dict[int, bool] = {}
        self.num_done = 0
        self.longest_seconds = 0.0
        self.kept_promises: list[bool] = []

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
        patient = client % 2 == 0
        place = ExitStack()
        try:
            place.enter_context(at_work(self.admission, f"client-{client}"))
        except Overloaded as error:
            if self.came_as_told.pop(client, False):
                self.kept_promises.append(False)
            assert error.retry_after_seconds is not None
            if patient:
                self.came_as_told[client] = error.retry_after_seconds < 300
            self.at(error.retry_after_seconds if patient else self.IMPATIENCE, "ask", client)
            return
        if self.came_as_told.pop(client, False):
            self.kept_promises.append(True)
        self.places[client] = place
        self.admitted_at[client] = self.clock.now
        self.queue.append(client)

    def finish(self, client: int) -> None:
        self.idle_workers += 1
        self.num_done += 1
        self.longest_seconds = max(self.longest_seconds, self.clock.now - self.admitted_at[client])
        self.places.pop(client).close()
        self.at(0.0, "ask", client)


def test_at_four_times_the_capacity_whoever_comes_back_as_told_is_let_in() -> None:
    crowd = Crowd()
    crowd.run(240.0)
    capacity = 240.0 * Crowd.WORKERS / Crowd.SECONDS
    assert crowd.num_done >= 0.95 * capacity
    assert crowd.longest_seconds <= 1.1 * Crowd.PLACES * Crowd.SECONDS / Crowd.WORKERS
    assert len(crowd.kept_promises) > 100
    assert sum(crowd.kept_promises) >= 0.95 * len(crowd.kept_promises)


def test_a_place_is_held_while_the_video_is_sent_but_not_for_long() -> None:
    clock = Clock()
    admission = Admission(2, 1, clock=clock)
    with admission.enter("quick") as quick, at_work(admission):
        assert refused(admission, "another") >= 1
        with quick.admit():
            pass
        with at_work(admission, "another"):  # done is done: the place went with the video
            pass
    clock.now += 60.0
    with admission.enter("slow") as slow:
        clock.now += 5.0
        with at_work(admission), at_work(admission), pytest.raises(Overloaded), slow.admit():
            pass
    with admission.enter("slow") as slow, admission.enter("slow too"), at_work(admission):
        assert admission.count == 1, "one that only holds a place keeps out one, not all"


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_that_obeys_and_is_encoded_in_batches_is_let_in_as_told(seed: int) -> None:
    """Clients that come once, at four times the capacity: whole seconds bring them back in crowds."""
    chance = random.Random(seed)
    clock, events, order = Clock(), [], itertools.count()  # type: ignore[var-annotated]
    admission = Admission(16, 2, clock=clock)
    queue: list[ExitStack] = []
    kept: list[bool] = []
    encoding = False

    def at(seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(events, (clock.now + seconds, next(order), what))

    def come(client: str, as_told: bool) -> None:
        place = ExitStack()
        try:
            entry = place.enter_context(admission.enter(client))
        except Overloaded as error:
            if as_told:
                kept.append(False)
            elif (error.retry_after_seconds or 300) < 300:
                at(float(error.retry_after_seconds or 0), lambda: come(client, True))
            return
        if as_told:
            kept.append(True)
        at(chance.uniform(0.01, 0.1), lambda: sent(place, entry, as_told))

    def sent(place: ExitStack, entry: Entry, as_told: bool) -> None:
        try:
            place.enter_context(entry.admit())
        except Overloaded:
            assert not as_told  # its place was held
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
        at(number * 0.01, lambda number=number: come(f"client-{number}", False))  # type: ignore[misc]
    while events:
        clock.now, _, what = heapq.heappop(events)
        what()
    assert len(kept) > 200
    assert sum(kept) >= 0.97 * len(kept)
