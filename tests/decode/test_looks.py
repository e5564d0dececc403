"""Looks at long videos: what they promise for any video, and what packets betray of cuts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidlex.model.decode.looks import LOOK_INTERVAL_MS, MAX_UNSEEN_MS, choose_looks, suspected_cuts

UNLIMITED = 10**6


@st.composite
def videos(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, key frames and packet sizes of at most some minutes: any frame rate, constant or not, any pattern."""
    step = draw(st.sampled_from([8, 33, 40, 100, 400, 1500]))
    count = draw(st.integers(1, max(1, min(6000, 240_000 // step))))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = np.full(count - 1, step) if draw(st.booleans()) else random.integers(0, 2 * step + 1, count - 1)
    every = draw(st.sampled_from([1, 12, 50, 250, 10**6]))
    is_key = np.arange(count) % every == 0
    is_key |= random.random(count) < draw(st.sampled_from([0.0, 0.001, 0.05]))
    sizes = random.integers(50, 2000, count)
    sizes[random.random(count) < draw(st.sampled_from([0.0, 0.002, 0.3]))] = 30_000
    sizes[is_key] = 25_000
    return np.cumsum([0, *steps]).astype(np.int64), np.flatnonzero(is_key), sizes.astype(np.int64)


def unseen(looks: np.ndarray, starts_ms: np.ndarray, start_ms: int, end_ms: int) -> int:
    """The longest time in the window during which no frame of ``looks`` is shown."""
    ends = np.append(starts_ms, max(end_ms, int(starts_ms[-1]) + 1))[looks + 1]
    between = (starts_ms[looks[1:]] - ends[:-1]).tolist()
    return max([int(starts_ms[looks[0]]) - start_ms, end_ms - int(ends[-1]), *map(int, between)])


def decoded(looks: np.ndarray, keyframes: np.ndarray) -> int:
    """Frames to decode for ``looks``: from the key frame or the look before on."""
    total, last = 0, -1
    for look in looks.tolist():
        key = int(keyframes[np.searchsorted(keyframes, look, "right") - 1])
        total += look - key + 1 if key > last else look - last
        last = look
    return total


@given(videos(), st.data())
def test_looks_are_few_increase_and_lie_in_the_window(
    video: tuple[np.ndarray, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    starts_ms, keyframes, sizes = video
    start = data.draw(st.integers(0, int(starts_ms[-1])))
    end = start + data.draw(st.integers(1, 300_000))
    max_looks = data.draw(st.sampled_from([1, 2, 7, 50, UNLIMITED]))
    looks = choose_looks(starts_ms, keyframes, sizes, start_ms=start, end_ms=end, max_looks=max_looks)
    assert 1 <= len(looks) <= max(1, min(max_looks, (end - start) // LOOK_INTERVAL_MS))
    assert (np.diff(looks) > 0).all()
    assert starts_ms[looks[-1]] < end
    assert looks[0] + 1 == len(starts_ms) or starts_ms[looks[0] + 1] >= start  # shown in the window


@given(videos(), st.data())
def test_a_scene_of_three_seconds_has_a_look_wherever_the_budget_allows(
    video: tuple[np.ndarray, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    starts_ms, keyframes, sizes = video
    start = data.draw(st.integers(0, int(starts_ms[-1])))
    end = start + data.draw(st.integers(2 * LOOK_INTERVAL_MS, 600_000))
    looks = choose_looks(starts_ms, keyframes, sizes, start_ms=start, end_ms=end, max_looks=UNLIMITED)
    assert unseen(looks, starts_ms, start, end) < MAX_UNSEEN_MS


@given(videos(), st.sampled_from([1, 2, 5, 10]))
def test_too_few_looks_are_spread(video: tuple[np.ndarray, np.ndarray, np.ndarray], max_looks: int) -> None:
    starts_ms, keyframes, sizes = video
    end = max(int(starts_ms[-1]), (max_looks + 1) * LOOK_INTERVAL_MS)
    looks = choose_looks(starts_ms, keyframes, sizes, start_ms=0, end_ms=end, max_looks=max_looks)
    assert unseen(looks, starts_ms, 0, end) < 1.2 * end / (max_looks + 1) + 1


def regular(seconds: int, gop: int, *, key_size: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """25 frames/s with a key frame every ``gop``; others have a twentieth of its size."""
    count = 25 * seconds
    keyframes = np.arange(0, count, gop)
    sizes = np.full(count, key_size // 20)
    sizes[keyframes] = key_size
    return np.arange(count) * 40, keyframes, sizes


@pytest.mark.parametrize(("gop", "most"), [(25, 0.02), (50, 0.13), (75, 0.02), (100, 0.45), (250, 0.75)])
def test_looks_are_where_decoding_is_cheap(gop: int, most: float) -> None:
    starts_ms, keyframes, sizes = regular(300, gop)
    looks = choose_looks(starts_ms, keyframes, sizes, start_ms=0, end_ms=300_000, max_looks=UNLIMITED)
    assert decoded(looks, keyframes) <= most * len(starts_ms)
    evenly = np.arange(LOOK_INTERVAL_MS // 2, 300_000, LOOK_INTERVAL_MS) // 40
    assert decoded(looks, keyframes) < 0.85 * decoded(evenly, keyframes)


@pytest.mark.parametrize("cut_s", [41.0, 43.2, 44.6, 47.04])
@pytest.mark.parametrize("has_key", [False, True])
def test_a_shot_of_one_second_that_packets_betray_has_a_look(cut_s: float, has_key: bool) -> None:
    starts_ms, keyframes, sizes = regular(120, 250)
    cuts = np.array([round(25 * cut_s), round(25 * cut_s) + 25])
    sizes[cuts] = 15_000
    if has_key:
        keyframes = np.union1d(keyframes, cuts)
    assert suspected_cuts(starts_ms, keyframes, sizes).tolist() == cuts.tolist()
    looks = choose_looks(starts_ms, keyframes, sizes, start_ms=0, end_ms=120_000, max_looks=UNLIMITED)
    inside = looks[(looks >= cuts[0]) & (looks < cuts[1])]
    assert len(inside) >= 1
    assert (inside[0] == cuts[0]) == has_key  # without a key frame, the first pictures after a cut are poor
    assert len(looks) <= 48


def test_a_key_frame_that_restarts_the_count_makes_only_itself_suspect() -> None:
    keyframes = np.array([0, 250, 500, 610, 860, 1110, 1130, 1380, 1630])  # as x264 places them
    starts_ms = np.arange(1700) * 40
    sizes = np.full(1700, 900)
    sizes[keyframes] = 20_000
    assert suspected_cuts(starts_ms, keyframes, sizes).tolist() == [610, 1130]


def test_additional_key_frames_do_not_make_the_regular_ones_suspect() -> None:
    keyframes = np.union1d(np.arange(0, 1700, 100), [330, 777])
    starts_ms = np.arange(1700) * 40
    sizes = np.full(1700, 900)
    assert suspected_cuts(starts_ms, keyframes, sizes).tolist() == [330, 777]


def test_key_frames_regular_in_time_alone_are_not_suspect() -> None:
    steps = np.random.default_rng(3).integers(10, 90, 3000)
    starts_ms = np.cumsum([0, *steps])
    keyframes = np.unique(np.searchsorted(starts_ms, np.arange(0, starts_ms[-1], 2000)))
    starts_ms[keyframes] = np.arange(len(keyframes)) * 2000  # a variable rate, a key frame every two seconds
    sizes = np.full(len(starts_ms), 900)
    assert suspected_cuts(np.maximum.accumulate(starts_ms), keyframes, sizes).tolist() == []


def test_large_frames_in_busy_surroundings_are_not_suspect() -> None:
    starts_ms, keyframes, sizes = regular(60, 250)
    sizes[500:700:2] = 15_000  # fast motion
    cuts = suspected_cuts(starts_ms, keyframes, sizes)
    assert len(cuts) == 0


def test_more_cuts_than_looks_leave_them_spread() -> None:
    starts_ms, keyframes, sizes = regular(120, 250)
    random = np.random.default_rng(1)
    keyframes = np.union1d(keyframes, random.integers(0, 3000, 600))
    looks = choose_looks(starts_ms, keyframes, sizes, start_ms=0, end_ms=120_000, max_looks=UNLIMITED)
    assert len(looks) <= 48
    assert unseen(looks, starts_ms, 0, 120_000) < MAX_UNSEEN_MS


def test_the_longest_permitted_video_takes_seconds() -> None:
    count = 2 * 3600 * 60
    starts_ms = np.arange(count) * 1000 // 60
    looks = choose_looks(
        starts_ms, np.arange(0, count, 7), np.full(count, 5000), start_ms=0, end_ms=7_200_000, max_looks=UNLIMITED
    )
    assert len(looks) <= 24 * 120
    assert max(b - a for a, b in pairwise(starts_ms[looks].tolist())) <= MAX_UNSEEN_MS + 17


@pytest.mark.parametrize(
    ("starts", "window", "max_looks"), [([], (0, 1), 1), ([0], (5, 5), 1), ([0], (-1, 5), 1), ([0], (0, 5), 0)]
)
def test_nonsense_is_refused(starts: list[int], window: tuple[int, int], max_looks: int) -> None:
    times = np.array(starts, np.int64)
    with pytest.raises(ValueError, match=r"frames|window"):
        choose_looks(times, times[:1], times, start_ms=window[0], end_ms=window[1], max_looks=max_looks)
