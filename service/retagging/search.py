"""Searches among the kept videos of a namespace: by text, by a label, by an example video, by a vector.

Which videos are found is decided by the similarity of their best segment. Up to some number of segments, and with
filters, all are compared; above it short codes select candidates (codes.py). Every hit's score is computed again from
its kept features, exactly as ``POST /classify`` would, so that it does not depend on how the hit was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vidlex.service.classification.matching import ClassifyOptions, compare
from vidlex.service.errors import FeatureGenerationMissing, InvalidParameter
from vidlex.service.models.applied_calibration import fingerprint_of, scorer_of
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.retagging.codes import RECALL_AT, CodeCache
from vidlex.service.retagging.products import Queries
from vidlex.service.retagging.ranking import best_of_block, best_per_video, best_rows
from vidlex.service.retagging.tables import count_missing, table_of
from vidlex.service.sharing.requester import Requester
from vidlex.service.videos.keys import PACKED_ID_BYTES, pack_id
from vidlex.service.videos.pages import VideoFilter
from vidlex.service.videos.parts.table import KeptTable
from vidlex.service.videos.records import FeatureTable, KeptSegment, KeptVideo
from vidlex.service.videos.store import KeptVideoStore

ScoreKind = Literal["probability", "similarity"]
MAX_HITS = 100
MAX_EXAMINED = 20_000  # videos whose records are read for filters
MAX_OF_CLIENT_ID = 1000  # videos with one id of the client that are looked up before the search
MAX_SEGMENTS = 20  # of a hit, the best ones
_SCORED_AT_ONCE = 16_384  # segments, or one video
_MORE_HITS = 4
_CHUNKS = (200, 1000)  # records that are read at a time: more if the first ones did not pass


@dataclass(frozen=True)
class VideoFilters:
    """All that are given must hold. Times are inclusive; ``metadata``: members that are equal."""

    client_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    created_from_ms: int | None = None
    created_to_ms: int | None = None

    @property
    def reads_records(self) -> bool:
        return self.client_id is not None or bool(self.metadata)

    def accepts(self, video: KeptVideo) -> bool:
        if self.client_id is not None and video.client_id != self.client_id:
            return False
        return all(name in video.metadata and video.metadata[name] == value for name, value in self.metadata.items())

    def rows(self, table: FeatureTable) -> NDArray[np.bool_] | None:
        """Which videos were created in time; None: no matter when."""
        if self.created_from_ms is None and self.created_to_ms is None:
            return None
        times = _times_of(table.packed_ids())
        low = 0 if self.created_from_ms is None else self.created_from_ms
        high = 2**62 if self.created_to_ms is None else self.created_to_ms
        return np.asarray((times >= low) & (times <= high))


@dataclass(frozen=True, eq=False)
class SearchQuery:
    """Exactly one of ``text``, ``label_id``, ``video_id`` and ``vector`` is given.

    ``start_ms`` and ``end_ms`` choose the segments of the example video that count: those that overlap.
    """

    text: str | None = None
    label_id: str | None = None
    video_id: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    vector: Sequence[float] | None = None
    limit: int = 10
    min_score: float = 0.0
    filters: VideoFilters = VideoFilters()


@dataclass(frozen=True)
class SegmentHit:
    segment: KeptSegment
    score: float


@dataclass(frozen=True)
class Hit:
    """``score``: the probability of a text or label, the cosine with an example; that of the best segment."""

    video: KeptVideo
    score: float
    similarity: float
    segments: Sequence[SegmentHit]  # the best MAX_SEGMENTS, in order of time
    num_segments: int


@dataclass(frozen=True)
class SearchResult:
    hits: Sequence[Hit]  # best first
    scores: ScoreKind
    model: str  # fingerprint
    calibration: str | None
    revision: int
    num_videos: int  # that were searched
    num_segments: int
    num_missing: int  # without features of the model
    is_approximate: bool  # about one in a hundred of the best segments may have been overlooked
    is_complete: bool  # False: filters left fewer hits than asked for among the best MAX_EXAMINED


@dataclass(frozen=True, eq=False)
class _Asked:
    """``score(features [S, D])``: exact scores and similarities [S]."""

    vector: NDArray[np.float32]  # [D]
    score: Callable[[NDArray[np.float32]], tuple[NDArray[np.float64], NDArray[np.float32]]]
    kind: ScoreKind
    calibration: str | None
    revision: int
    example: str | None = None  # id, which is no hit


class VideoSearch:
    """Thread-safe."""

    def __init__(self, videos: KeptVideoStore, codes: CodeCache) -> None:
        self._videos = videos
        self.codes = codes

    def search(self, vocabulary: Vocabulary, query: SearchQuery, requester: Requester) -> SearchResult:
        """Raises NotFound, InvalidParameter, FeatureGenerationMissing, what ``Labeler.candidates`` raises, and
        Overloaded once the requester has given up."""
        namespace, model = vocabulary.namespace, vocabulary.facts.fingerprint
        table = table_of(self._videos, namespace, model)
        asked = self._asked(vocabulary, query, requester)
        ranked, is_approximate = self._ranked(vocabulary, table, asked, query, requester)
        hits, is_complete = self._hits(table, asked, query, namespace, ranked)
        return SearchResult(
            hits,
            asked.kind,
            model,
            asked.calibration,
            asked.revision,
            table.num_videos,
            table.num_segments,
            count_missing(self._videos, namespace, table),
            is_approximate,
            is_complete,
        )

    # -- the query

    def _asked(self, vocabulary: Vocabulary, query: SearchQuery, requester: Requester) -> _Asked:
        if query.text is not None:
            _, vectors = vocabulary.labeler.candidates([query.text], requester)
            return _by_label(vocabulary, vectors[0], ClassifyOptions(candidate_labels=[query.text]), requester)
        if query.label_id is not None:
            vector = vocabulary.index.vector(query.label_id)
            if vector is None:
                vocabulary.store.get(query.label_id)  # raises NotFound
                raise InvalidParameter("The label is not encoded by the served model yet")
            return _by_label(vocabulary, vector, ClassifyOptions(label_ids=[query.label_id]), requester)
        if query.video_id is not None:
            vector = self._example(vocabulary, query, query.video_id)
        else:
            assert query.vector is not None
            vector = np.asarray(query.vector, np.float32)
            if len(vector) != vocabulary.facts.dim:
                raise InvalidParameter(f"The served model's vectors have {vocabulary.facts.dim} numbers")
        length = float(np.linalg.norm(vector.astype(np.float64)))
        if not (np.isfinite(length) and length > 0):
            raise InvalidParameter("The vector must be finite and not zero")
        unit = (vector / length).astype(np.float32)

        def score(features: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
            similarity = np.vecdot(unit, features)
            return similarity.astype(np.float64), similarity

        return _Asked(unit, score, "similarity", None, vocabulary.index.revision, query.video_id)

    def _example(self, vocabulary: Vocabulary, query: SearchQuery, video_id: str) -> NDArray[np.float32]:
        """The mean direction of the segments."""
        kept = self._videos.features(vocabulary.namespace, video_id, vocabulary.facts.fingerprint)
        if kept is None:
            raise FeatureGenerationMissing("This video has no features of the served model; re-encode it")
        start_ms = 0 if query.start_ms is None else query.start_ms
        end_ms = 2**62 if query.end_ms is None else query.end_ms
        chosen = [i for i, x in enumerate(kept.segments) if x.start_ms <= end_ms and x.end_ms >= start_ms]
        if not chosen:
            raise InvalidParameter("The video has no segment between start_ms and end_ms")
        mean: NDArray[np.float32] = kept.vectors[chosen].astype(np.float64).mean(axis=0).astype(np.float32)
        return mean

    # -- candidates

    def _ranked(
        self, vocabulary: Vocabulary, table: KeptTable, asked: _Asked, query: SearchQuery, requester: Requester
    ) -> tuple[NDArray[np.intp], bool]:
        """Rows of videos, best first; whether only candidates were compared."""
        queries = Queries(asked.vector[None])
        allowed = self._allowed(vocabulary.namespace, table, query.filters)
        if allowed is None and not query.filters.reads_records:
            found = self._by_codes(vocabulary, table, queries, asked, query.limit + (asked.example is not None))
            if found is not None:
                return found, True
        best = best_per_video(table, queries, requester.check)
        if allowed is not None:
            best[~allowed] = -np.inf
        num = MAX_EXAMINED if query.filters.reads_records else 2 * query.limit + _CHUNKS[0]
        return best_rows(best, num), False

    def _allowed(self, namespace: str, table: KeptTable, filters: VideoFilters) -> NDArray[np.bool_] | None:
        """Which videos may be hits, as far as that is known without their records; None: all."""
        allowed = filters.rows(table)
        if filters.client_id is None:
            return allowed
        page = self._videos.page(namespace, VideoFilter(client_id=filters.client_id), limit=MAX_OF_CLIENT_ID)
        if page.has_more:
            return allowed
        own = _rows_of(table, [video.id for video in page.data])
        return own if allowed is None else own & allowed

    def _by_codes(
        self, vocabulary: Vocabulary, table: KeptTable, queries: Queries, asked: _Asked, limit: int
    ) -> NDArray[np.intp] | None:
        """None if there are no codes, or the best candidates are of fewer videos than asked for."""
        namespace, model = vocabulary.namespace, vocabulary.facts.fingerprint
        codes = self.codes.get(
            (namespace, model),
            table,
            lambda: self._videos.table(namespace, model),
            lambda num: _some_labels(vocabulary, num),
        )
        if codes is None:
            return None
        num = codes.recall.num_candidates * max(1, -(-limit // RECALL_AT))
        block = table.take(codes.candidates(table, asked.vector, num))
        rows, similarity = best_of_block(block, queries)
        order = np.argsort(-similarity, kind="stable")
        # Of videos that are removed at this moment there is one more for each hit.
        return rows[order][: 2 * limit + _CHUNKS[0]] if len(rows) >= min(2 * limit, table.num_videos) else None

    # -- hits

    def _hits(
        self, table: KeptTable, asked: _Asked, query: SearchQuery, namespace: str, ranked: NDArray[np.intp]
    ) -> tuple[list[Hit], bool]:
        hits: list[Hit] = []
        wanted = query.limit + _MORE_HITS  # the order of the exact scores may differ by rounding
        for videos in self._videos_of(table, namespace, ranked, wanted):
            found = [
                (row, video) for row, video in videos if video.id != asked.example and query.filters.accepts(video)
            ][: wanted - len(hits)]
            hits += _hits_of(table, found, asked)
            if len(hits) >= wanted or (hits and hits[-1].score < query.min_score):
                break
        else:
            return _best(hits, query), len(ranked) < MAX_EXAMINED
        return _best(hits, query), True

    def _videos_of(
        self, table: KeptTable, namespace: str, ranked: NDArray[np.intp], first: int
    ) -> Iterator[list[tuple[int, KeptVideo]]]:
        """Those that still exist, in chunks."""
        start, number = 0, 0
        while start < len(ranked):
            size = first if number == 0 else _CHUNKS[min(number, len(_CHUNKS)) - 1]
            rows = ranked[start : start + size].tolist()
            ids = table.video_ids(rows)
            row_of = dict(zip(ids, rows, strict=True))
            yield [(row_of[video.id], video) for video in self._videos.get_many(namespace, ids)]
            start, number = start + size, number + 1


def _by_label(
    vocabulary: Vocabulary, vector: NDArray[np.float32], options: ClassifyOptions, requester: Requester
) -> _Asked:
    nothing = np.zeros((1, vocabulary.facts.dim), np.float32)
    similarities = compare(nothing, options, vocabulary, requester)
    scorer = scorer_of(vocabulary.facts.scorer, similarities.calibration)

    def score(features: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        found = compare(features, options, vocabulary, requester, max_held=None)
        similarity, adjusted = found.at([0])
        return scorer.probability(adjusted[:, 0]), similarity[:, 0]

    return _Asked(vector, score, "probability", fingerprint_of(similarities.calibration), similarities.revision)


def _some_labels(vocabulary: Vocabulary, num: int) -> NDArray[np.float32]:
    """Vectors of labels at even distances, [n, D]."""
    dim, size = vocabulary.facts.dim, len(vocabulary.index)
    found = [vectors[:: max(1, size // max(1, num)), :dim] for _, vectors in vocabulary.index.batches()]
    return np.concatenate(found)[:num] if found else np.empty((0, dim), np.float32)


def _hits_of(table: KeptTable, found: Sequence[tuple[int, KeptVideo]], asked: _Asked) -> list[Hit]:
    hits: list[Hit] = []
    start = num_segments = 0
    for stop, (row, _) in enumerate(found, 1):
        first, last = table.segments_of_video(row)
        num_segments += last - first
        if num_segments >= _SCORED_AT_ONCE or stop == len(found):
            hits += _scored(table, found[start:stop], asked)
            start, num_segments = stop, 0
    return hits


def _scored(table: KeptTable, found: Sequence[tuple[int, KeptVideo]], asked: _Asked) -> list[Hit]:
    spans = [table.segments_of_video(row) for row, _ in found]
    wanted = np.unique(np.concatenate([np.arange(start, stop) for start, stop in spans]))
    block = table.take(wanted)
    scores, similarity = asked.score(block.vectors.astype(np.float32))
    hits = []
    for (_, video), (start, stop) in zip(found, spans, strict=True):
        first = int(np.searchsorted(wanted, start))
        rows = np.arange(first, first + stop - start)
        best = rows[np.sort(np.argsort(-scores[rows], kind="stable")[:MAX_SEGMENTS])]
        segments = [
            SegmentHit(KeptSegment(int(block.start_ms[i]), int(block.end_ms[i])), float(scores[i]))
            for i in best.tolist()
        ]
        hits.append(Hit(video, float(scores[rows].max()), float(similarity[rows].max()), segments, len(rows)))
    return hits


def _best(hits: Sequence[Hit], query: SearchQuery) -> list[Hit]:
    accepted = [hit for hit in hits if hit.score >= query.min_score]
    return sorted(accepted, key=lambda hit: -hit.similarity)[: query.limit]


def _rows_of(table: KeptTable, video_ids: Sequence[str]) -> NDArray[np.bool_]:
    ids = table.packed_ids()
    found = np.zeros(len(ids), np.bool_)
    wanted = np.sort(np.array([pack_id(video_id) for video_id in video_ids], ids.dtype))
    if len(ids) and len(wanted):
        firsts, wanted_firsts = _first_bytes(ids), np.unique(_first_bytes(wanted))  # integers are compared faster
        at = np.minimum(np.searchsorted(wanted_firsts, firsts), len(wanted_firsts) - 1)
        candidates = np.flatnonzero(wanted_firsts[at] == firsts)
        found[candidates] = np.isin(ids[candidates], wanted)
    return found


def _times_of(packed_ids: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """When videos were created: the first 50 of 120 bits (keys.created_at_ms)."""
    if not len(packed_ids):
        return np.empty(0, np.int64)
    return (_first_bytes(packed_ids) >> np.uint64(14)).astype(np.int64)


def _first_bytes(packed_ids: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """The first 8 as numbers of the same order."""
    raw = np.ascontiguousarray(packed_ids).view(np.uint8).reshape(-1, PACKED_ID_BYTES)[:, :8]
    return np.ascontiguousarray(raw).view(">u8")[:, 0].astype(np.uint64)
