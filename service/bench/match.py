"""One video against all labels: the whole matching of a request beside one memory pass and beside FAISS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from vidlex.model.scoring import Scorer
from vidlex.model.types import FrameGeometry
from vidlex.service.bench.harness import BenchError, BenchOptions, Case, Figure, Report, Side, compare, report, timed
from vidlex.service.classification.matching import Candidates, NamesOf, Part, rank
from vidlex.service.labels.index.approximate import MIN_LABELS, RECALL_AT, Approximation
from vidlex.service.labels.index.label_index import LabelIndex, Matches
from vidlex.service.labels.index.vector_slabs import Storage
from vidlex.service.labels.store.records import Label, NewLabel, make_label
from vidlex.service.models.served_model import ModelFacts
from vidlex.service.schemas.classify import ClassifyParams

_TOP_K = 20
_PASS_TARGET = 1 / 1.2
"""The whole matching takes at most 1.2 times one memory pass."""
_RECALL_QUERIES = 32
_LOADED_AT_ONCE = 16_384
_ADD_SECONDS = 0.05
_FACTS = ModelFacts("bench", "bench", 1, FrameGeometry(1), 1, Scorer(30.0, -8.0), 0.5)
_PART = Part(0, 1)


@dataclass(frozen=True)
class MatchOptions(BenchOptions):
    repetitions: int = 21
    warmups: int = 3
    dim: int = 512
    approximate_labels: int = 1_000_000
    """Labels of the approximate searches; 0 leaves them out."""
    cluster: int = 100
    """Labels in each cluster of the clustered vectors, at a cosine of about 0.67 to each other."""


def run(options: MatchOptions) -> Report:
    sizes = (1000,) if options.quick else (1000, 10_000, 100_000)
    cases = [_exact(size, "float32", options) for size in sizes]
    cases.append(_exact(sizes[-1], "float16", options))
    cases += _filtered(sizes[-1], options)
    cases.append(_while_writing(sizes[-1], options))
    num_approximate = MIN_LABELS if options.quick else options.approximate_labels
    if num_approximate:
        if num_approximate < MIN_LABELS:
            raise BenchError(f"approximate search begins at {MIN_LABELS} labels")
        cases += [_approximate(num_approximate, clustered, options) for clustered in (True, False)]
    return report("match", cases, options)


# --- the cases


def _exact(num: int, storage: Storage, options: MatchOptions) -> Case:
    index, matrix = _filled(num, storage, options)
    video = _near(matrix[:1], options.seed)
    flat = faiss.IndexFlatIP(options.dim)
    flat.add(matrix)
    library: object = flat
    sides = [
        Side("vidlex", lambda: _discard(_matched(index.search(video)))),
        Side("one memory pass", lambda: _discard(matrix.sum())),
        Side("matrix x vector (BLAS)", lambda: _discard(matrix @ video[0])),
        Side("faiss IndexFlatIP", lambda: _discard(library.search(video, _TOP_K))),  # type: ignore[attr-defined]
    ]
    target = {"one memory pass": _PASS_TARGET} if num >= 100_000 and storage == "float32" else {}
    note = f"search, top {_TOP_K}, probabilities, names; the pass sums {matrix.nbytes / 1e6:.0f} MB of float32"
    return compare(
        f"{num} labels, exact, {storage}", sides, options, work=num, unit="labels", at_least=target, note=note
    )


def _filtered(num: int, options: MatchOptions) -> Iterator[Case]:
    """Filters inside the search, against the search of everything."""
    index, matrix = _filled(num, "float32", options)
    video = _near(matrix[:1], options.seed)
    ids = [_label(i).id for i in range(0, num, 3)][:30_000]
    shuffled = [ids[i] for i in np.random.default_rng(options.seed).permutation(len(ids))]
    searches: dict[str, Callable[[], Matches]] = {
        "a category of half the labels": lambda: index.search(video, include_categories=["even"]),
        "without a tenth of the labels": lambda: index.search(video, exclude_categories=["tenth"]),
        f"{len(ids)} label_ids in order": lambda: index.search(video, label_ids=ids),
        f"{len(ids)} label_ids in any order": lambda: index.search(video, label_ids=shuffled),
        "100 label_ids": lambda: index.search(video, label_ids=ids[:100]),
    }
    for name, search in searches.items():
        sides = [
            Side("vidlex, filtered", lambda search=search: _discard(_matched(search()))),  # type: ignore[misc]
            Side("vidlex, everything", lambda: _discard(_matched(index.search(video)))),
        ]
        yield compare(f"{num} labels, {name}", sides, options)


def _while_writing(num: int, options: MatchOptions) -> Case:
    """Readers' times with and without a writer beside them, and the writer's own."""
    index, matrix = _filled(num, "float32", options)
    video = _near(matrix[:1], options.seed)
    num_searches = 20 if options.quick else 300
    alone = np.array([timed(lambda: _discard(_matched(index.search(video)))) for _ in range(num_searches)])
    stop = threading.Event()
    added: list[float] = []

    def write() -> None:
        while not stop.is_set():
            started = time.perf_counter()
            index.upsert([_label(num + len(added))], video)
            added.append(time.perf_counter() - started)
            stop.wait(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    beside = np.array([timed(lambda: _discard(_matched(index.search(video)))) for _ in range(num_searches)])
    stop.set()
    writer.join()
    figures = (
        Figure(name="search p50, no writer", value=1e3 * float(np.quantile(alone, 0.5)), unit="ms"),
        Figure(name="search p99, no writer", value=1e3 * float(np.quantile(alone, 0.99)), unit="ms"),
        Figure(name="search p50 beside a writer", value=1e3 * float(np.quantile(beside, 0.5)), unit="ms"),
        Figure(name="search p99 beside a writer", value=1e3 * float(np.quantile(beside, 0.99)), unit="ms"),
        Figure(
            name="adding one label, median", value=1e3 * float(np.median(added)), unit="ms", at_most=1e3 * _ADD_SECONDS
        ),
        Figure(name="adding one label, p99", value=1e3 * float(np.quantile(added, 0.99)), unit="ms"),
    )
    note = f"a writer adds a label every 2 ms ({len(added)} in all); the store and the encoder are not part of it"
    return Case(name=f"{num} labels, readers beside a writer", figures=figures, note=note)


def _approximate(num: int, clustered: bool, options: MatchOptions) -> Case:
    approximation = Approximation()
    started = time.perf_counter()
    index, matrix = _filled(num, "float32", options, approximation=approximation, clustered=clustered)
    if not approximation.wait(1800) or index.approximate is None:
        raise BenchError("the codes were not made within half an hour")
    ready_seconds = time.perf_counter() - started
    video = _near(matrix[:1], options.seed)
    sides = [
        Side("vidlex, approximate", lambda: _discard(_matched(index.search(video, top_k=_TOP_K)))),
        Side("vidlex, half of them", lambda: _discard(_matched(index.search(
            video, top_k=_TOP_K, include_categories=["even"])))),
        Side("vidlex, exact", lambda: _discard(_matched(index.search(video)))),
    ]  # fmt: skip
    case = compare("", sides, options, work=num, unit="labels")
    facts = index.approximate
    figures = (
        Figure(name="whole matching, median", value=1e3 * case.timings[0].median_seconds, unit="ms", at_most=10.0),
        Figure(name=f"recall@{RECALL_AT}", value=_recall(index, matrix, options.seed), at_least=0.99),
        Figure(name="recall as measured at build", value=facts.recall),
        Figure(name="candidates compared exactly", value=facts.num_candidates),
        Figure(name="loaded and codes made", value=ready_seconds, unit="s"),
    )
    how = f"clusters of {options.cluster}" if clustered else "isotropic random, the hardest there is"
    return case.model_copy(update={"name": f"{num} labels, approximate: {how}", "figures": figures})


def _recall(index: LabelIndex, matrix: NDArray[np.float32], seed: int) -> float:
    """For other queries than those of the build: a random label's direction and as much noise."""
    chosen = np.random.default_rng(seed + 1).choice(len(matrix), _RECALL_QUERIES, replace=False)
    shares = []
    for place in chosen:
        video = _near(matrix[place : place + 1], seed + 2 + int(place))
        found = [set(_best(index.search(video, top_k=top_k))) for top_k in (RECALL_AT, 0)]
        shares.append(len(found[0] & found[1]) / RECALL_AT)
    return float(np.mean(shares))


# --- what they are made of


def _best(matches: Matches) -> list[str]:
    return [matches.labels[row].id for row in np.argpartition(-matches.similarity[0], RECALL_AT)[:RECALL_AT]]


def _matched(matches: Matches) -> object:
    """What a request does behind the search: the best rows, their probabilities, names, categories and thresholds."""
    found = Candidates(NamesOf(matches.labels), matches.labels, matches.similarity, matches.revision)
    return rank(found, [_PART], ClassifyParams.model_validate({"top_k": _TOP_K}), _FACTS)


def _filled(
    num: int,
    storage: Storage,
    options: MatchOptions,
    *,
    approximation: Approximation | None = None,
    clustered: bool = True,
) -> tuple[LabelIndex, NDArray[np.float32]]:
    """An index of ``num`` labels, and their unit vectors [num, D] as one matrix beside it."""
    rng = np.random.default_rng(options.seed)
    matrix = np.empty((num, options.dim), np.float32)
    centres = rng.standard_normal((max(1, num // options.cluster), options.dim), dtype=np.float32)
    for start in range(0, num, _LOADED_AT_ONCE):
        part = matrix[start : start + _LOADED_AT_ONCE]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        if clustered:
            part *= 0.7
            part += centres[rng.integers(0, len(centres), len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    index = LabelIndex(options.dim, "bench", storage=storage, approximation=approximation)
    starts = range(0, num, _LOADED_AT_ONCE)
    index.replace(
        (
            (
                [_label(i) for i in range(start, min(start + _LOADED_AT_ONCE, num))],
                matrix[start : start + _LOADED_AT_ONCE],
            )
            for start in starts
        ),
        revision=1,
    )
    return index, matrix


def _label(number: int) -> Label:
    categories = ("even" if number % 2 == 0 else "odd", *(("tenth",) if number % 10 == 0 else ()))
    new = NewLabel(f"label {number}", categories=categories)
    return make_label(f"lbl_{number:024d}", new, created_at_ms=0, updated_at_ms=0, revision=1)


def _near(vector: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """[1, D] A unit vector at a cosine of about 0.7 to ``vector`` [1, D]: a video that shows the label."""
    noise = np.random.default_rng(seed).standard_normal(vector.shape, dtype=np.float32)
    near = vector + noise / np.linalg.norm(noise)
    unit: NDArray[np.float32] = (near / np.linalg.norm(near)).astype(np.float32)
    return unit


def _discard(_: object) -> None:
    """For a side, whose answer would be taken for its seconds."""
