"""Properties of frame selection for any video and any window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidlex.model.decode.sampling import centre_times, frames_at, frames_in, select_frames


@st.composite
def starts(draw: st.DrawFn) -> np.ndarray:
    """Start times of the frames of a video with a constant or variable frame rate."""
    steps = draw(st.lists(st.integers(0, 5000), min_size=0, max_size=60))
    return np.cumsum([0, *steps]).astype(np.int64)


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, int]:
    start = draw(st.integers(0, 10**7))
    return start, start + draw(st.integers(1, 10**7))


def test_sixteen_of_three_hundred_frames_match_values_computed_by_hand() -> None:
    """10 s at 30 frames/s: a segment has 18.75 frames, and its centre is at 9.375."""
    starts_ms = np.arange(300) * 1000 // 30
    indices = select_frames(starts_ms, num_frames=16, start_ms=0, end_ms=10_000)
    assert indices.tolist() == [int((2 * k + 1) * 300 / 32) for k in range(16)]


def test_the_last_frame_is_repeated_if_there_are_too_few() -> None:
    indices = select_frames(np.array([0, 100, 200]), num_frames=5, start_ms=0, end_ms=300)
    assert indices.tolist() == [0, 1, 2, 2, 2]


def test_each_frame_is_selected_once_if_the_number_matches() -> None:
    indices = select_frames(np.array([0, 10, 20, 9000]), num_frames=4, start_ms=0, end_ms=10_000)
    assert indices.tolist() == [0, 1, 2, 3]


def test_selection_follows_time_with_a_variable_frame_rate() -> None:
    """Nine frames in the first second, and one that lasts nine seconds."""
    starts_ms = np.array([*range(0, 900, 100), 1000])
    indices = select_frames(starts_ms, num_frames=5, start_ms=0, end_ms=10_000)
    assert indices.tolist() == [9, 9, 9, 9, 9]
    assert select_frames(starts_ms, num_frames=2, start_ms=0, end_ms=1000).tolist() == [2, 7]


def test_a_window_between_two_frames_selects_the_one_shown() -> None:
    indices = select_frames(np.array([0, 1000, 2000]), num_frames=2, start_ms=1300, end_ms=1400)
    assert indices.tolist() == [1, 1]


def test_keyframes_are_spread_within_the_window() -> None:
    starts_ms = np.arange(100) * 100
    keys = list(range(0, 100, 10))
    options = {"starts_ms": starts_ms, "policy": "keyframes", "keyframes": keys}
    assert select_frames(num_frames=5, start_ms=0, end_ms=10_000, **options).tolist() == [10, 30, 50, 70, 90]
    assert select_frames(num_frames=3, start_ms=2000, end_ms=4000, **options).tolist() == [20, 30, 30]
    # without a keyframe in the window: the one before it
    assert select_frames(num_frames=2, start_ms=2300, end_ms=2600, **options).tolist() == [20, 20]
    no_keys = select_frames(starts_ms, num_frames=2, start_ms=2300, end_ms=2600, policy="keyframes")
    assert no_keys.tolist() == [0, 0]


@pytest.mark.parametrize(("num_frames", "start_ms", "end_ms"), [(0, 0, 1), (1, 5, 5), (1, 7, 5), (1, -1, 5)])
def test_invalid_windows_are_rejected(num_frames: int, start_ms: int, end_ms: int) -> None:
    with pytest.raises(ValueError, match=r"num_frames|window"):
        centre_times(num_frames, start_ms, end_ms)


def test_unknown_policies_and_videos_without_frames_are_rejected() -> None:
    with pytest.raises(ValueError, match="known: uniform, keyframes"):
        select_frames(np.array([0]), num_frames=1, start_ms=0, end_ms=1, policy="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without frames"):
        select_frames(np.array([], np.int64), num_frames=1, start_ms=0, end_ms=1)


@given(window=windows(), num_frames=st.integers(1, 300))
def test_centres_are_within_their_segments(window: tuple[int, int], num_frames: int) -> None:
    start, end = window
    times = centre_times(num_frames, start, end)
    assert len(times) == num_frames
    for k, time in enumerate(times.tolist()):
        left = start + k * (end - start) / num_frames
        assert left - 1 < time < left + (end - start) / num_frames
    assert start <= times[0] and times[-1] < end
    # equal distances from both ends, up to rounding
    assert abs((times[0] - start) - (end - times[-1])) <= 2


@given(starts_ms=starts(), window=windows(), num_frames=st.integers(1, 80))
def test_selection_is_complete_ordered_and_within_the_window(
    starts_ms: np.ndarray, window: tuple[int, int], num_frames: int
) -> None:
    start, end = window
    indices = select_frames(starts_ms, num_frames=num_frames, start_ms=start, end_ms=end)
    inside = frames_in(start, end, starts_ms)
    assert len(indices) == num_frames
    assert (np.diff(indices) >= 0).all()
    assert set(indices.tolist()) <= set(inside.tolist())
    if len(inside) <= num_frames:
        assert set(indices.tolist()) == set(inside.tolist())


@given(starts_ms=starts(), times=st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_frames_at_matches_its_definition(starts_ms: np.ndarray, times: list[int]) -> None:
    for time, index in zip(times, frames_at(np.array(times), starts_ms).tolist(), strict=True):
        assert index == max((i for i, start in enumerate(starts_ms.tolist()) if start <= time), default=0)


@given(starts_ms=starts(), window=windows(), num_frames=st.integers(1, 40), data=st.data())
def test_the_keyframe_policy_selects_only_keyframes(
    starts_ms: np.ndarray, window: tuple[int, int], num_frames: int, data: st.DataObject
) -> None:
    keys = sorted({0, *data.draw(st.sets(st.integers(0, len(starts_ms) - 1)))})
    indices = select_frames(
        starts_ms, num_frames=num_frames, start_ms=window[0], end_ms=window[1], policy="keyframes", keyframes=keys
    )
    assert len(indices) == num_frames
    assert (np.diff(indices) >= 0).all()
    assert set(indices.tolist()) <= set(keys)
