"""Searches among kept videos, against brute force over their features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from support.kept_table import random_features
from support.still_vocabulary import StillVocabulary, classified, vocabulary_of
from support.stores import label_id, running_store, vector_of
from vidlex.service.errors import FeatureGenerationMissing, InvalidParameter, NotFound
from vidlex.service.models.served_model import Vocabulary
from vidlex.service.retagging.codes import MAX_UNCODED, CodeCache
from vidlex.service.retagging.search import MAX_SEGMENTS, SearchQuery, SearchResult, VideoFilters, VideoSearch
from vidlex.service.sharing.requester import Requester
from vidlex.service.videos.records import KeptFeatures, KeptVideo, NewKeptVideo
from vidlex.service.videos.store import KeptVideoStore, VideoLimits

DIM = 48
NUM_VIDEOS = 60
KEY = ("default", "bench")


@dataclass
class Kept:
    store: KeptVideoStore
    vocabulary: StillVocabulary
    features: list[KeptFeatures]
    videos: list[KeptVideo]

    def search(self, codes: CodeCache | None = None, **query: Any) -> SearchResult:
        searching = VideoSearch(self.store, codes or CodeCache(0))
        return searching.search(cast(Vocabulary, self.vocabulary), SearchQuery(**query), Requester())

    def similarities(self, vector: NDArray[np.float32]) -> dict[str, float]:
        """Of the best segment of each video that is still kept."""
        found = {}
        for video, features in zip(self.videos, self.features, strict=True):
            if self.store.get_many("default", [video.id]):
                found[video.id] = float((features.vectors.astype(np.float32) @ vector).max())
        return found


def new_video(number: int, **more: Any) -> NewKeptVideo:
    fields: dict[str, Any] = {
        "namespace": "default", "client": "key", "sha256": f"{number:064x}", "sampling": {"num_frames": 4},
        "facts": {"duration_ms": 1000}, "receipt": {},
    }  # fmt: skip
    return NewKeptVideo(**(fields | more))


def keep(store: KeptVideoStore, number: int, features: KeptFeatures, model: str = "bench", **more: Any) -> KeptVideo:
    return store.keep(new_video(number, **more), model, features.segments, features.vectors.astype(np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def kept(folder: Path) -> Iterator[Kept]:
    vocabulary, vectors = vocabulary_of(8, DIM, calibrated=True)
    with running_store(folder / "store") as client:
        store = KeptVideoStore(client, folder / "videos", VideoLimits(2**30, None))
        features = random_features(NUM_VIDEOS, DIM, near=vectors, max_segments=30)
        videos = [
            keep(store, number, x, client_id=f"c{number % 3}", metadata={"team": number % 2, "deep": {"a": [1]}})
            for number, x in enumerate(features)
        ]
        yield Kept(store, vocabulary, features, videos)


def test_by_label_scores_as_classification(kept: Kept) -> None:
    wanted = label_id(2)
    found = kept.search(label_id=wanted, limit=10)
    expected = {
        video.id: classified(kept.vocabulary, features, [wanted])[wanted]
        for video, features in zip(kept.videos, kept.features, strict=True)
    }
    ranked = sorted(expected.items(), key=lambda item: -item[1].similarity)[:10]
    assert [hit.video.id for hit in found.hits] == [video_id for video_id, _ in ranked]
    assert [hit.score for hit in found.hits] == [scored.score for _, scored in ranked]
    assert [hit.similarity for hit in found.hits] == [scored.similarity for _, scored in ranked]
    assert (found.scores, found.calibration, found.revision) == ("probability", "c0ffee", 7)
    assert (found.num_videos, found.num_missing, found.is_approximate, found.is_complete) == (60, 0, False, True)
    assert found.num_segments == sum(len(video.segments) for video in kept.features)


def test_by_text_and_segments(kept: Kept) -> None:
    found = kept.search(text="a walk in the snow", limit=5)
    best = sorted(kept.similarities(vector_of("a walk in the snow", DIM)).items(), key=lambda item: -item[1])[:5]
    assert [hit.video.id for hit in found.hits] == [video_id for video_id, _ in best]
    for hit in found.hits:
        features = kept.features[[video.id for video in kept.videos].index(hit.video.id)]
        assert hit.num_segments == len(features.segments)
        assert len(hit.segments) == min(MAX_SEGMENTS, hit.num_segments)
        assert {segment.segment for segment in hit.segments} <= set(features.segments)
        starts = [segment.segment.start_ms for segment in hit.segments]
        assert starts == sorted(starts)
        assert max(segment.score for segment in hit.segments) == hit.score


def test_by_example(kept: Kept) -> None:
    example, features = kept.videos[7], kept.features[7]
    found = kept.search(video_id=example.id, limit=4)
    mean = features.vectors.astype(np.float64).mean(axis=0)
    expected = kept.similarities((mean / np.linalg.norm(mean)).astype(np.float32))
    expected.pop(example.id)
    best = sorted(expected.items(), key=lambda item: -item[1])[:4]
    assert [hit.video.id for hit in found.hits] == [video_id for video_id, _ in best]
    assert found.scores == "similarity" and found.calibration is None
    np.testing.assert_allclose([hit.score for hit in found.hits], [score for _, score in best], atol=1e-6)
    first = features.segments[0]
    found = kept.search(video_id=example.id, start_ms=first.start_ms, end_ms=first.start_ms + 1, limit=1)
    expected = kept.similarities(features.vectors[0].astype(np.float32))
    expected.pop(example.id)
    assert found.hits[0].video.id == max(expected, key=lambda video_id: expected[video_id])


def test_by_vector_and_min_score(kept: Kept) -> None:
    vector = vector_of("anything", DIM)
    expected = kept.similarities(vector)
    threshold = sorted(expected.values())[-4] - 1e-5
    found = kept.search(vector=(vector * 17).tolist(), min_score=threshold, limit=50)
    assert len(found.hits) == 4
    assert [hit.video.id for hit in found.hits] == sorted(expected, key=lambda x: -expected[x])[:4]


def test_filters(kept: Kept) -> None:
    vector = vector_of("anything", DIM)
    expected = kept.similarities(vector)

    def ids(filters: VideoFilters, limit: int = 50) -> list[str]:
        found = kept.search(vector=vector.tolist(), filters=filters, limit=limit, min_score=-1.0)
        assert found.is_complete
        return [hit.video.id for hit in found.hits]

    def ranked(accepts: Any) -> list[str]:
        chosen = [video.id for video in kept.videos if accepts(video)]
        return sorted(chosen, key=lambda video_id: -expected[video_id])

    assert ids(VideoFilters(client_id="c1")) == ranked(lambda video: video.client_id == "c1")
    assert ids(VideoFilters(metadata={"team": 1}), 5) == ranked(lambda video: video.metadata["team"] == 1)[:5]
    assert ids(VideoFilters(client_id="c1", metadata={"deep": {"a": [1]}})) == ids(VideoFilters(client_id="c1"))
    assert ids(VideoFilters(metadata={"team": 2})) == ids(VideoFilters(metadata={"other": None})) == []
    first, last = kept.videos[10].created_at_ms, kept.videos[30].created_at_ms
    within = VideoFilters(created_from_ms=first, created_to_ms=last)
    assert ids(within, 60) == ranked(lambda video: first <= video.created_at_ms <= last)
    assert len(ids(within, 60)) < len(kept.videos)


def test_bad_queries(kept: Kept) -> None:
    with pytest.raises(InvalidParameter, match="48 numbers"):
        kept.search(vector=[1.0, 2.0])
    with pytest.raises(InvalidParameter, match="not zero"):
        kept.search(vector=[0.0] * DIM)
    with pytest.raises(InvalidParameter, match="no segment between"):
        kept.search(video_id=kept.videos[0].id, start_ms=10**9, end_ms=10**9 + 1)
    with pytest.raises(NotFound):
        kept.search(video_id="vid_000000000000000000000000")


def test_codes_find_what_an_exact_search_finds(folder: Path, kept: Kept) -> None:
    """With new videos, removed ones and a part that was emptied since the codes were built."""
    store = KeptVideoStore(cast(Any, kept.store)._client, folder / "coded", VideoLimits(2**30, None))
    rng = np.random.default_rng(3)
    vocabulary, vectors = vocabulary_of(8, DIM)
    other = Kept(store, vocabulary, [], [])

    def add(count: int, num_segments: int) -> None:
        for _ in range(count):
            number = len(other.videos)
            (features,) = random_features(1, DIM, seed=number, near=vectors, max_segments=2)
            wide = rng.standard_normal((num_segments, DIM)).astype(np.float32)
            wide += 1.5 * vectors[rng.integers(0, len(vectors), num_segments)]
            wide /= np.linalg.norm(wide, axis=1, keepdims=True)
            segments = [features.segments[0]] * num_segments
            features = KeptFeatures(segments, wide.astype(np.float16))
            other.features.append(features)
            other.videos.append(keep(store, number, features, namespace="coded"))

    cache = CodeCache(2**30, min_segments=1000)

    def search(query: NDArray[np.float32], codes: CodeCache | None = None) -> SearchResult:
        searching = VideoSearch(store, codes or CodeCache(0))
        asked = SearchQuery(vector=query.tolist(), limit=10, min_score=-1.0)
        coded = StillVocabulary(vocabulary.facts, vocabulary.index, namespace="coded", labeler=vocabulary.labeler)
        return searching.search(cast(Vocabulary, coded), asked, Requester())

    def check(least_share: float) -> None:
        shares = []
        for i in range(8):
            query = vectors[i] + 0.05 * rng.standard_normal(DIM).astype(np.float32)
            exact, coded = search(query), search(query, cache)
            assert not exact.is_approximate and coded.is_approximate
            scores = {hit.video.id: hit.score for hit in exact.hits}
            shares.append(len(scores.keys() & {hit.video.id for hit in coded.hits}) / 10)
            assert all(hit.score == scores.get(hit.video.id, hit.score) for hit in coded.hits)
        assert np.mean(shares) >= least_share

    add(120, 50)
    assert not search(vectors[0], cache).is_approximate  # the codes are not there yet
    assert cache.wait(("coded", "bench"), 120)
    recall = cache.stats(("coded", "bench"))
    assert recall is not None and recall.is_enough and recall.num_segments == 6000
    check(0.9)
    (before,) = search(vectors[0], cache).hits[:1]
    store.remove("coded", before.video.id)
    assert before.video.id not in {hit.video.id for hit in search(vectors[0], cache).hits}
    new = KeptFeatures(other.features[0].segments[:1], vectors[:1].astype(np.float16))
    newest = keep(store, 10**6, new, namespace="coded")
    assert search(vectors[0], cache).hits[0].video.id == newest.id  # without codes
    table = store.table("coded", "bench")
    stale = cache.get(("coded", "bench"), table, lambda: table, lambda _: vectors)
    assert stale is not None and stale.num_rows == 6000 < MAX_UNCODED
    store.remove("coded", newest.id)
    check(0.9)


def test_codes_are_bounded(kept: Kept) -> None:
    small = CodeCache(1000, min_segments=10)
    assert not kept.search(small, label_id=label_id(0)).is_approximate
    assert small.stats(KEY) is None
    enough = CodeCache(2**20, min_segments=10)
    kept.search(enough, label_id=label_id(0))
    assert enough.wait(KEY, 60) and enough.stats(KEY) is not None


def test_after_a_change_of_model(kept: Kept) -> None:
    dim_vocabulary, _ = vocabulary_of(3, 16)
    facts = dim_vocabulary.facts
    next_vocabulary = StillVocabulary(
        type(facts)("next", "next", 16, facts.geometry, 1, facts.scorer, 0.5), dim_vocabulary.index
    )
    other = Kept(kept.store, next_vocabulary, [], [])
    with pytest.raises(FeatureGenerationMissing):
        other.search(vector=[1.0] * 16)
    (features,) = random_features(1, 16)
    video = keep(kept.store, 0, features, model="next")
    assert video.id == kept.videos[0].id
    found = other.search(vector=[1.0] * 16)
    assert [hit.video.id for hit in found.hits] == [video.id]
    assert (found.num_videos, found.num_missing, found.model) == (1, NUM_VIDEOS - 1, "next")
    with pytest.raises(FeatureGenerationMissing, match="re-encode"):
        other.search(video_id=kept.videos[1].id)
