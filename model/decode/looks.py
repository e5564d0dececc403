"""Which frames of a long video to look at, chosen from its packets before anything is decoded.

A look is a frame that the model sees. Three aims are weighed against each other, minute by minute:

- a scene of three seconds contains a look, wherever it lies, as far as the number of looks allows;
- a short shot contains a look if the packets betray it (`suspected_cuts`);
- few frames are decoded: a frame costs all those between its key frame, or the look before, and itself.

Times are milliseconds; a frame is shown from ``starts_ms[i]`` until the next one starts. Everything is O(frames) in
numpy but the choice itself, which takes about 4 ms per minute of video.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidlex.model.decode.sampling import Indices, frames_at

LOOK_INTERVAL_MS = 2500  # on average: 24 looks per minute, those for cuts included
MAX_UNSEEN_MS = 3000  # between two looks
_GRID_MS = 500  # where looks may lie, in addition to key frames and cuts
_BLOCK_LOOKS = 24  # looks chosen at once; what a block does not use is left to the blocks after it

# costs, in frames to decode
_SEEK_COST = 2.0
_LATE_COST = 5.0  # of MAX_UNSEEN_MS rather than LOOK_INTERVAL_MS between looks
_EDGE_COST = 8.0  # of a picture that a cut has just spoilt: compressed in haste, or half faded
_MISSED_SHOT_COST = 1000.0

_SHORT_SHOT_MS = 1000  # shorter shots matter less
_MIN_SHOT_MS = 250  # shorter ones not at all: flashes, and pairs of suspicions of one cut
_SETTLE_MS = 300  # after a cut without a key frame
_FADE_MS = 200

# The packet of a frame at a cut that is no key frame, against those around it. Two in three such packets pass (in AV1
# with reordering: hardly any), and one other per minute.
_MIN_JUMP = 1.5  # over the largest
_MIN_OVER_MEAN = 2.0
_MIN_KEY_SHARE = 0.2  # of the size of a key frame
_NEAR, _AROUND, _FAR = 2, 17, 38  # frames to either side: those that share in the cut, for the largest, for the mean


def choose_looks(
    starts_ms: Indices, keyframes: Indices, sizes: Indices, *, start_ms: int, end_ms: int, max_looks: int
) -> Indices:
    """Indices, increasing, of at most ``max_looks`` frames shown in the window [start_ms, end_ms).

    At most one per LOOK_INTERVAL_MS on average, and at least one. ``sizes`` [n] are the bytes of each frame's packet.
    """
    if len(starts_ms) == 0 or len(sizes) != len(starts_ms):
        raise ValueError(f"{len(starts_ms)} frames with {len(sizes)} sizes")
    if not 0 <= start_ms < end_ms or max_looks < 1:
        raise ValueError(f"no window or no looks: {start_ms = }, {end_ms = }, {max_looks = }")
    span = end_ms - start_ms
    num_looks = max(1, min(max_looks, span // LOOK_INTERVAL_MS))
    scale = max(1.0, span / (num_looks + 1) / LOOK_INTERVAL_MS)  # greater than 1 if the budget is too small
    cuts = suspected_cuts(starts_ms, keyframes, sizes)
    nodes = _candidates(starts_ms, keyframes, cuts, window=(start_ms, end_ms), scale=scale)
    num_blocks = -(-num_looks // _BLOCK_LOOKS)
    edges = start_ms + span * np.arange(1, num_blocks + 1) // num_blocks
    shots = np.searchsorted(nodes.cut_times, edges, "right")
    shots[-1] += 1  # so that the last one is to be seen
    budgets = _budgets(num_looks, shots, MAX_UNSEEN_MS * scale / span)
    looks: list[int] = []
    last = _Last(frame=-1, end_ms=float(start_ms), shot=-1)
    for edge, shot, total in zip(edges.tolist(), shots.tolist(), budgets.tolist(), strict=True):
        goal = _Goal(edge, shot, min(total - len(looks), 2 * _BLOCK_LOOKS))
        chosen = _choose(nodes, last, goal, MAX_UNSEEN_MS * scale)
        if len(chosen):
            looks.extend(nodes.frames[chosen].tolist())
            last = _Last(looks[-1], float(nodes.ends[chosen[-1]]), int(nodes.shots[chosen[-1]]))
    return np.array(looks, np.int64)


def _budgets(num_looks: int, shots: Indices, unseen_share: float) -> Indices:
    """Looks up to the end of each block: enough everywhere to leave little unseen, the rest where shots are many."""
    blocks = np.arange(1, len(shots) + 1)
    least = min(num_looks / len(shots), 1 / (unseen_share * len(shots)) + 1)
    share = (shots + blocks) / (shots[-1] + blocks[-1])
    budgets: Indices = np.floor(least * blocks + (num_looks - least * len(shots)) * share + 1e-6).astype(np.int64)
    return budgets


# --- cuts ---------------------------------------------------------------------------------------------------------


def suspected_cuts(starts_ms: Indices, keyframes: Indices, sizes: Indices) -> Indices:
    """Frames, increasing, that probably begin a shot: key frames out of turn, and others that are suddenly large."""
    found = np.concatenate([_keyframes_out_of_turn(starts_ms, keyframes), _jumps(keyframes, sizes)])
    return np.unique(found)


def _keyframes_out_of_turn(starts_ms: Indices, keyframes: Indices) -> Indices:
    """Key frames that no other one precedes by the usual distance, in frames or in time."""
    if len(keyframes) < 3:
        return keyframes[:0]
    is_regular = np.zeros(len(keyframes), np.bool_)
    for position, tolerance in ((keyframes, 1), (starts_ms[keyframes], 20)):
        usual = _usual(np.diff(position))
        earlier = np.searchsorted(position, position - usual - tolerance)
        is_regular |= position[earlier] <= position - usual + tolerance
        is_regular[1:] |= np.diff(position) >= usual
    is_regular[0] = True
    return keyframes[~is_regular]


def _usual(distances: Indices) -> int:
    """The commonest distance of key frames; the longest if none is common, as where cuts alone shorten it."""
    values, counts = np.unique(distances, return_counts=True)
    best = len(counts) - 1 - int(np.argmax(counts[::-1]))
    return int(values[best] if counts[best] >= max(3, 0.2 * len(distances)) else values[-1])


def _jumps(keyframes: Indices, sizes: Indices) -> Indices:
    """Frames other than key frames that are far larger than all around but their neighbours."""
    if len(keyframes) == 0:
        return keyframes
    own = sizes.astype(np.float64)
    own[keyframes] = 0.0
    is_other = own > 0
    largest = np.zeros_like(own)
    for distance in range(_NEAR + 1, _AROUND + 1):
        largest[distance:] = np.maximum(largest[distance:], own[:-distance])
        largest[:-distance] = np.maximum(largest[:-distance], own[distance:])
    total = _sums_around(own, _FAR) - _sums_around(own, _NEAR)
    count = _sums_around(is_other, _FAR) - _sums_around(is_other, _NEAR)
    is_jump = is_other & (own >= _MIN_JUMP * largest) & (own * count >= _MIN_OVER_MEAN * total)
    found: Indices = np.flatnonzero(is_jump & (own >= _MIN_KEY_SHARE * np.median(sizes[keyframes])))
    return found


def _sums_around(values: NDArray[np.float64] | NDArray[np.bool_], radius: int) -> NDArray[np.float64]:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    around: NDArray[np.float64] = (
        sums[np.minimum(positions + radius + 1, len(values))] - sums[np.maximum(positions - radius, 0)]
    )
    return around


# --- candidates ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Nodes:
    """Frames that may be chosen, increasing. Arrays [m], but ``missed`` [shots + 1]."""

    frames: Indices
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]  # when the next frame starts
    keyframes: Indices  # from which each is decoded
    shots: Indices  # in which each lies
    costs: NDArray[np.float64]  # of its picture
    missed: NDArray[np.float64]  # cost of not seeing any of the shots before the k-th
    cut_times: NDArray[np.float64]


@dataclass(frozen=True)
class _Last:
    """The look before a block; at the start of the window none."""

    frame: int
    end_ms: float
    shot: int


@dataclass(frozen=True)
class _Goal:
    """The end of a block, the shot in which it lies, and how many looks may lead there."""

    edge_ms: int
    shot: int
    budget: int


def _candidates(
    starts_ms: Indices, keyframes: Indices, cuts: Indices, *, window: tuple[int, int], scale: float
) -> _Nodes:
    start_ms, end_ms = window
    first, last = (int(i) for i in frames_at(np.array([start_ms, end_ms - 1]), starts_ms))
    cuts = cuts[(cuts > first) & (cuts <= last)]
    cut_times = starts_ms[cuts].astype(np.float64)
    lengths = np.diff(np.concatenate([[start_ms], cut_times, [end_ms]]))
    weights = np.where(lengths < _MIN_SHOT_MS * scale, 0.0, np.minimum(lengths / (_SHORT_SHOT_MS * scale), 1.0))

    grid = frames_at(np.arange(start_ms, end_ms, _GRID_MS * scale).astype(np.int64), starts_ms)
    keys = keyframes[(keyframes >= first) & (keyframes <= last)]
    cells = ((starts_ms[keys] - start_ms) // (_GRID_MS * scale)).astype(np.int64)
    keys = keys[np.flatnonzero(np.diff(cells, prepend=-2))]  # one a cell
    begun = weights[1:] > 0
    settled = frames_at((cut_times + np.minimum(_SETTLE_MS, lengths[1:] / 2))[begun].astype(np.int64), starts_ms)
    at_cuts = np.where(np.isin(cuts[begun], keyframes), cuts[begun], settled)

    frames = np.unique(np.concatenate([grid, keys, at_cuts, [last]]))
    starts = np.maximum(starts_ms[frames], start_ms).astype(np.float64)
    owner = keyframes[np.maximum(np.searchsorted(keyframes, frames, "right") - 1, 0)] if len(keyframes) else 0 * frames
    edges = np.concatenate([[-np.inf], cut_times, [np.inf]])
    shots = np.searchsorted(cut_times, starts, "right")
    is_spoilt = (frames != owner) & ((starts - edges[shots] < _FADE_MS) | (edges[shots + 1] - starts < _FADE_MS))
    return _Nodes(
        frames=frames,
        starts=starts,
        ends=np.append(starts_ms, max(end_ms, starts_ms[-1] + 1))[frames + 1].astype(np.float64),
        keyframes=np.minimum(owner, frames),
        shots=shots,
        costs=_EDGE_COST * is_spoilt,
        missed=np.concatenate([[0.0], np.cumsum(weights)]) * _MISSED_SHOT_COST,
        cut_times=cut_times,
    )


# --- choice -------------------------------------------------------------------------------------------------------


def _choose(nodes: _Nodes, last: _Last, goal: _Goal, max_unseen: float) -> Indices:
    """Positions in ``nodes`` of the cheapest looks up to the goal. More than ``max_unseen`` ms pass between two of
    them only if its budget does not allow less."""
    while True:
        chosen = _cheapest_path(nodes, last, goal, max_unseen)
        if chosen is not None:
            return chosen
        max_unseen *= 1.25


def _cheapest_path(nodes: _Nodes, last: _Last, goal: _Goal, max_unseen: float) -> Indices | None:
    low = int(np.searchsorted(nodes.frames, last.frame, "right"))
    high = int(np.searchsorted(nodes.starts, goal.edge_ms))
    frames = np.append(last.frame, nodes.frames[low:high])
    starts, ends = (np.append(last.end_ms, times[low:high]) for times in (nodes.starts, nodes.ends))
    shots = np.append(last.shot, nodes.shots[low:high])
    best = np.full((len(frames), goal.budget + 1), np.inf)  # [nodes, looks]: cost of a node as the k-th look
    best[0, 0] = 0.0
    parents = np.zeros(best.shape, np.int64)
    target_ms = max_unseen * LOOK_INTERVAL_MS / MAX_UNSEEN_MS
    late_cost = _LATE_COST / (max_unseen - target_ms)
    firsts = np.searchsorted(ends, starts - max_unseen, "right")
    columns = np.arange(goal.budget)
    for node in range(1, len(frames)):
        before = slice(int(firsts[node]), node)
        key = nodes.keyframes[low + node - 1]
        steps = np.where(key > frames[before], frames[node] - key + 1 + _SEEK_COST, frames[node] - frames[before])
        steps += nodes.costs[low + node - 1] + late_cost * np.maximum(starts[node] - ends[before] - target_ms, 0.0)
        steps += np.maximum(nodes.missed[shots[node]] - nodes.missed[shots[before] + 1], 0.0)
        totals = best[before, :-1] + steps[:, None]
        parent = np.argmin(totals, axis=0)
        best[node, 1:] = totals[parent, columns]
        parents[node, 1:] = parent + before.start
    best += np.where(goal.edge_ms - ends < max_unseen, 0.0, np.inf)[:, None]
    best += np.maximum(nodes.missed[goal.shot] - nodes.missed[shots + 1], 0.0)[:, None]
    if last.frame < 0:
        best[0] = np.inf  # a window has at least one look
    node, count = divmod(int(np.argmin(best)), goal.budget + 1)
    if not np.isfinite(best[node, count]):
        return None
    path = []
    while node > 0:
        path.append(low + node - 1)
        node, count = int(parents[node, count]), count - 1
    return np.array(path[::-1], np.int64)
