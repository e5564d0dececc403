"""Which frames are looked at: arithmetic that must hold for any video and any window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidlex.model.decode.sampling import centre_times, frames_at, frames_in, select_frames


@st.composite
def starts(draw: st.DrawFn) -> np.ndarray:
    """Start times of a video with a constant or a wildly variable frame rate."""
    steps = draw(st.lists(st.integers(0, 5000), min_size=0, max_size=60))
    return np.cumsum([0, *steps]).astype(np.int64)


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, int]:
    start = draw(st.integers(0, 10**7))
    return start, start + draw(st.integers(1, 10**7))


def test_sixteen_of_three_hundred() -> None:
    """10 s at 30 frames/s, by hand: the segment is 18.75 frames, its centre 9.375."""
    starts_ms = np.arange(300) * 1000 // 30
    got = select_frames(starts_ms, num_frames=16, start_ms=0, end_ms=10_000)
    assert got.tolist() == [int((2 * k + 1) * 300 / 32) for k in range(16)]


def test_fewer_frames_than_asked_repeats_the_last() -> None:
    got = select_frames(np.array([0, 100, 200]), num_frames=5, start_ms=0, end_ms=300)
    assert got.tolist() == [0, 1, 2, 2, 2]


def test_exactly_as_many_frames_as_asked_gives_each_once_whatever_their_times() -> None:
    got = select_frames(np.array([0, 10, 20, 9000]), num_frames=4, start_ms=0, end_ms=10_000)
    assert got.tolist() == [0, 1, 2, 3]


def test_variable_rate_follows_time_not_number() -> None:
    """Nine frames in the first second, one that stands for nine more: time spends itself on the last."""
    starts_ms = np.array([*range(0, 900, 100), 1000])
    got = select_frames(starts_ms, num_frames=5, start_ms=0, end_ms=10_000)
    assert got.tolist() == [9, 9, 9, 9, 9]
    assert select_frames(starts_ms, num_frames=2, start_ms=0, end_ms=1000).tolist() == [2, 7]


def test_a_window_between_two_frames_shows_the_one_on_screen() -> None:
    got = select_frames(np.array([0, 1000, 2000]), num_frames=2, start_ms=1300, end_ms=1400)
    assert got.tolist() == [1, 1]


def test_keyframes_are_spread_and_stay_in_the_window() -> None:
    starts_ms = np.arange(100) * 100
    keys = list(range(0, 100, 10))
    pick = {"starts_ms": starts_ms, "policy": "keyframes", "keyframes": keys}
    assert select_frames(num_frames=5, start_ms=0, end_ms=10_000, **pick).tolist() == [10, 30, 50, 70, 90]
    assert select_frames(num_frames=3, start_ms=2000, end_ms=4000, **pick).tolist() == [20, 30, 30]
    # none inside: the one that decoding would begin at
    assert select_frames(num_frames=2, start_ms=2300, end_ms=2600, **pick).tolist() == [20, 20]
    no_keys = select_frames(starts_ms, num_frames=2, start_ms=2300, end_ms=2600, policy="keyframes")
    assert no_keys.tolist() == [0, 0]


@pytest.mark.parametrize(("num_frames", "start_ms", "end_ms"), [(0, 0, 1), (1, 5, 5), (1, 7, 5), (1, -1, 5)])
def test_senseless_windows_are_refused(num_frames: int, start_ms: int, end_ms: int) -> None:
    with pytest.raises(ValueError, match=r"num_frames|window"):
        centre_times(num_frames, start_ms, end_ms)


def test_unknown_policy_and_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="known: uniform, keyframes"):
        select_frames(np.array([0]), num_frames=1, start_ms=0, end_ms=1, policy="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without frames"):
        select_frames(np.array([], np.int64), num_frames=1, start_ms=0, end_ms=1)


@given(window=windows(), num_frames=st.integers(1, 300))
def test_centres_lie_in_their_segments(window: tuple[int, int], num_frames: int) -> None:
    start, end = window
    times = centre_times(num_frames, start, end)
    assert len(times) == num_frames
    for k, time in enumerate(times.tolist()):
        left = start + k * (end - start) / num_frames
        assert left - 1 < time < left + (end - start) / num_frames
    assert start <= times[0] and times[-1] < end
    # the same distance from both ends, to the millisecond
    assert abs((times[0] - start) - (end - times[-1])) <= 2


@given(starts_ms=starts(), window=windows(), num_frames=st.integers(1, 80))
def test_selection_is_complete_ordered_and_inside(
    starts_ms: np.ndarray, window: tuple[int, int], num_frames: int
) -> None:
    start, end = window
    got = select_frames(starts_ms, num_frames=num_frames, start_ms=start, end_ms=end)
    inside = frames_in(start, end, starts_ms)
    assert len(got) == num_frames
    assert (np.diff(got) >= 0).all()
    assert set(got.tolist()) <= set(inside.tolist())
    if len(inside) <= num_frames:
        assert set(got.tolist()) == set(inside.tolist())


@given(starts_ms=starts(), times=st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_the_frame_on_screen_by_definition(starts_ms: np.ndarray, times: list[int]) -> None:
    for time, index in zip(times, frames_at(np.array(times), starts_ms).tolist(), strict=True):
        assert index == max((i for i, start in enumerate(starts_ms.tolist()) if start <= time), default=0)


@given(starts_ms=starts(), window=windows(), num_frames=st.integers(1, 40), data=st.data())
def test_keyframes_only(starts_ms: np.ndarray, window: tuple[int, int], num_frames: int, data: st.DataObject) -> None:
    keys = sorted({0, *data.draw(st.sets(st.integers(0, len(starts_ms) - 1)))})
    got = select_frames(
        starts_ms, num_frames=num_frames, start_ms=window[0], end_ms=window[1], policy="keyframes", keyframes=keys
    )
    assert len(got) == num_frames
    assert (np.diff(got) >= 0).all()
    assert set(got.tolist()) <= set(keys)
