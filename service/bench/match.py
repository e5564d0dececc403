"""Matching one video with all labels, against one pass over memory and against FAISS."""

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
from vidlex.service.classification.matching import ClassifyOptions, LabelNames, LabelSimilarities, rank
from vidlex.service.labels.index.approximate import MIN_LABELS, RECALL_AT, ApproximateIndexBuilder
from vidlex.service.labels.index.label_index import LabelIndex, Matches
from vidlex.service.labels.index.vector_slabs import Storage
from vidlex.service.labels.store.indexed_label import IndexedLabel
from vidlex.service.models.served_model import ModelFacts

_TOP_K = 20
_PASS_TARGET = 1 / 1.2  # matching takes at most 1.2 times one memory pass
_RECALL_QUERIES = 32
_LOAD_BATCH = 16_384
_MAX_ADD_MS = 50.0
_FACTS = ModelFacts("bench", "bench", 1, FrameGeometry(1), 1, Scorer(30.0, -8.0), 0.5)
_OPTIONS = ClassifyOptions(top_k=_TOP_K)


@dataclass(frozen=True)
class MatchOptions(BenchOptions):
    repetitions: int = 21
    """Measured runs of each side."""
    warmups: int = 3
    """Runs of each side before measuring."""
    dim: int = 512
    """Dimension of the vectors."""
    approximate_labels: int = 1_000_000
    """Labels of the approximate searches; 0 skips them."""
    cluster: int = 100
    """Labels per cluster of vectors (cosine about 0.67)."""


def run(options: MatchOptions) -> Report:
    sizes = (1000,) if options.quick else (1000, 10_000, 100_000)
    cases = [_exact(size, "float32", options) for size in sizes]
    cases.append(_exact(sizes[-1], "float16", options))
    cases += _filtered(sizes[-1], options)
    cases.append(_while_writing(sizes[-1], options))
    num_approximate = MIN_LABELS if options.quick else options.approximate_labels
    if num_approximate:
        if num_approximate < MIN_LABELS:
            raise BenchError(f"approximate search requires at least {MIN_LABELS} labels")
        cases += [_approximate(num_approximate, clustered, options) for clustered in (True, False)]
    return report("match", cases, options)


# --- cases


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
            Side("vidlex, all labels", lambda: _discard(_matched(index.search(video)))),
        ]
        yield compare(f"{num} labels, {name}", sides, options)


def _while_writing(num: int, options: MatchOptions) -> Case:
    index, matrix = _filled(num, "float32", options)
    video = _near(matrix[:1], options.seed)
    num_searches = 20 if options.quick else 300
    idle = np.array([timed(lambda: _discard(_matched(index.search(video)))) for _ in range(num_searches)])
    stop = threading.Event()
    added: list[float] = []

    def write() -> None:
        while not stop.is_set():
            started = time.perf_counter()
            index.apply([_label(num + len(added))], video)
            added.append(time.perf_counter() - started)
            stop.wait(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    busy = np.array([timed(lambda: _discard(_matched(index.search(video)))) for _ in range(num_searches)])
    stop.set()
    writer.join()
    figures = (
        Figure(name="search p50, no writer", value=1e3 * float(np.quantile(idle, 0.5)), unit="ms"),
        Figure(name="search p99, no writer", value=1e3 * float(np.quantile(idle, 0.99)), unit="ms"),
        Figure(name="search p50, one writer", value=1e3 * float(np.quantile(busy, 0.5)), unit="ms"),
        Figure(name="search p99, one writer", value=1e3 * float(np.quantile(busy, 0.99)), unit="ms"),
        Figure(name="adding one label, median", value=1e3 * float(np.median(added)), unit="ms", at_most=_MAX_ADD_MS),
        Figure(name="adding one label, p99", value=1e3 * float(np.quantile(added, 0.99)), unit="ms"),
    )
    note = f"the writer adds a label every 2 ms ({len(added)} in total), without the store and the encoder"
    return Case(name=f"{num} labels, search during writes", figures=figures, note=note)


def _approximate(num: int, clustered: bool, options: MatchOptions) -> Case:
    builder = ApproximateIndexBuilder()
    started = time.perf_counter()
    index, matrix = _filled(num, "float32", options, builder=builder, clustered=clustered)
    if not builder.wait(1800) or index.recall_stats is None:
        raise BenchError("the approximate index was not built within 1800 s")
    ready_seconds = time.perf_counter() - started
    video = _near(matrix[:1], options.seed)
    sides = [
        Side("vidlex, approximate", lambda: _discard(_matched(index.search(video, top_k=_TOP_K)))),
        Side("vidlex, approximate, half of the labels", lambda: _discard(_matched(index.search(
            video, top_k=_TOP_K, include_categories=["even"])))),
        Side("vidlex, exact", lambda: _discard(_matched(index.search(video)))),
    ]  # fmt: skip
    case = compare("", sides, options, work=num, unit="labels")
    facts = index.recall_stats
    figures = (
        Figure(name="matching, median", value=1e3 * case.timings[0].median_seconds, unit="ms", at_most=10.0),
        Figure(name=f"recall@{RECALL_AT}", value=_recall(index, matrix, options.seed), at_least=0.99),
        Figure(name="recall measured at build", value=facts.recall),
        Figure(name="candidates rescored exactly", value=facts.num_candidates),
        Figure(name="load and build", value=ready_seconds, unit="s"),
    )
    distribution = f"clusters of {options.cluster}" if clustered else "isotropic (the hardest case)"
    return case.model_copy(update={"name": f"{num} labels, approximate: {distribution}", "figures": figures})


def _recall(index: LabelIndex, matrix: NDArray[np.float32], seed: int) -> float:
    """On queries that the build does not use: the vectors of random labels, with noise."""
    chosen = np.random.default_rng(seed + 1).choice(len(matrix), _RECALL_QUERIES, replace=False)
    shares = []
    for row in chosen:
        video = _near(matrix[row : row + 1], seed + 2 + int(row))
        found = [set(_best(index.search(video, top_k=top_k))) for top_k in (RECALL_AT, 0)]
        shares.append(len(found[0] & found[1]) / RECALL_AT)
    return float(np.mean(shares))


# --- data and steps


def _best(matches: Matches) -> list[str]:
    return [matches.labels[row].id for row in np.argpartition(-matches.similarity[0], RECALL_AT)[:RECALL_AT]]


def _matched(matches: Matches) -> object:
    # As a request does.
    names = LabelNames(matches.labels)
    similarities = LabelSimilarities(
        names, matches.labels, matches.similarity, matches.adjusted, calibration=None, revision=matches.revision
    )
    return rank(similarities, _OPTIONS, _FACTS)


def _filled(
    num: int,
    storage: Storage,
    options: MatchOptions,
    *,
    builder: ApproximateIndexBuilder | None = None,
    clustered: bool = True,
) -> tuple[LabelIndex, NDArray[np.float32]]:
    """Also returns the unit vectors [num, D] as one matrix."""
    rng = np.random.default_rng(options.seed)
    matrix = np.empty((num, options.dim), np.float32)
    centres = rng.standard_normal((max(1, num // options.cluster), options.dim), dtype=np.float32)
    for start in range(0, num, _LOAD_BATCH):
        part = matrix[start : start + _LOAD_BATCH]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        if clustered:
            part *= 0.7
            part += centres[rng.integers(0, len(centres), len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    index = LabelIndex(options.dim, "bench", storage=storage, approximate_builder=builder)
    starts = range(0, num, _LOAD_BATCH)
    index.replace(
        (
            (
                [_label(i) for i in range(start, min(start + _LOAD_BATCH, num))],
                matrix[start : start + _LOAD_BATCH],
            )
            for start in starts
        ),
        revision=1,
    )
    return index, matrix


def _label(number: int) -> IndexedLabel:
    categories = ("even" if number % 2 == 0 else "odd", *(("tenth",) if number % 10 == 0 else ()))
    return IndexedLabel(f"lbl_{number:024d}", f"label {number}", categories, None)


def _near(vector: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    # [1, D], at a cosine of about 0.7
    noise = np.random.default_rng(seed).standard_normal(vector.shape, dtype=np.float32)
    near = vector + noise / np.linalg.norm(noise)
    unit: NDArray[np.float32] = (near / np.linalg.norm(near)).astype(np.float32)
    return unit


def _discard(_: object) -> None:
    """A side must return None: a returned number counts as its seconds."""
