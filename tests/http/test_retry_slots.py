"""The timetable of refused clients, against its two rules counted one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidlex.service.http.retry_slots import MAX_RETRY_SECONDS, Pace, Promises

TWO = Pace(2.0)
Steps = st.lists(st.tuples(st.floats(0.0, 0.7), st.integers(0, 3)), max_size=60)


@given(steps=Steps, pace=st.builds(Pace, st.floats(0.2, 40.0), st.floats(0.0, 1.5)), most=st.integers(0, 8))
def test_the_first_moment_at_which_all_are_let_in(steps: list[tuple[float, int]], pace: Pace, most: int) -> None:
    promises, now, times = Promises(most), 100.0, list[float]()
    for number, (pause, num_free) in enumerate(steps):
        now += pause
        promises.forget_late(now)
        times = [x for x in times if x > now - 1.5]
        moments = range(1, MAX_RETRY_SECONDS + 1)
        since = now + pace.lag
        first = next((m for m in moments if fits(times, now + m, pace, most, since=since, num_free=num_free)), None)
        told = promises.make(f"client-{number}", now, pace=pace, num_free=num_free)
        assert told == (first or MAX_RETRY_SECONDS)
        if first is not None:
            times = sorted([*times, now + told])
        assert len(promises) == len(times)


def fits(times: list[float], new: float, pace: Pace, most: int, *, since: float, num_free: int) -> bool:
    """Whether one more finds room, those after it too, and no crowd that it is part of is too large."""
    every = sorted([*times, new])
    place = sum(x <= new for x in times)
    if any(i + 1 > num_free + pace.rate * max(0.0, every[i] - since) + 2e-9 for i in range(place, len(every))):
        return False
    return all(
        i - j + 1 <= max(1, most) + pace.rate * (every[i] - every[j]) + 2e-6
        for i in range(place, len(every))
        for j in range(place + 1)
    )


def test_a_promise_is_for_one_client_once_and_not_for_ever() -> None:
    promises = Promises(4)
    assert promises.make("a", 10.0, pace=TWO, num_free=0) == 1
    assert not promises.take("b", 11.0) and not promises.take("a", 10.5)
    assert promises.take("a", 10.95) and not promises.take("a", 11.0)
    assert promises.make("a", 20.0, pace=TWO, num_free=0) == 1
    promises.forget_late(22.4)
    assert len(promises) == 1
    promises.forget_late(22.6)
    assert len(promises) == 0


@pytest.mark.parametrize(("seconds_before", "num_kept"), [(3.0, 0), (1.0, 1), (0.5, 2), (0.0, 3), (-1.0, 3)])
def test_newcomers_leave_free_what_will_not_become_free_in_time(seconds_before: float, num_kept: int) -> None:
    """Three who come at once, and two places that become free in each second."""
    promises = Promises(4)
    for client in "abc":
        assert promises.make(client, 10.0, pace=TWO, num_free=3) == 1
    assert promises.num_kept(9.0, Pace(2.0, lag=0.5)) == 0 < promises.num_kept(9.9, Pace(2.0, lag=0.5))
    assert promises.num_kept(11.0 - seconds_before, TWO) == num_kept
    assert Promises(0).num_kept(0.0, TWO) == 0


def test_no_more_is_kept_than_may_be() -> None:
    promises = Promises(2)
    told = [promises.make(f"client-{number}", 0.0, pace=TWO, num_free=9) for number in range(5)]
    assert told == [1, 1, 2, 2, 3]
    assert promises.num_kept(3.0, TWO) == 2


def test_places_are_kept_for_as_many_as_come() -> None:
    promises, now = Promises(8), 0.0

    def kept_for_eight(*, came: bool) -> int:
        """Eight are told to come, once more and again; places that are kept when the last of them are due."""
        nonlocal now
        for number in range(64):
            promises.make(f"client-{number}", now, pace=Pace(1.0), num_free=8)
            if number % 8 == 7:
                now += 1.0
                kept = promises.num_kept(now, Pace(0.001))
                for back in range(64):
                    if came:
                        promises.take(f"client-{back}", now)
                now += 10.0
                promises.forget_late(now)
        return kept

    assert kept_for_eight(came=True) == 8
    assert kept_for_eight(came=False) == 2
    assert kept_for_eight(came=True) == 8
