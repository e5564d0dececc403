"""Backfills of labels over kept videos: what is gained and lost, repeated attempts, cancelled jobs, quotas."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import redis
from numpy.typing import NDArray

from support.kept_table import random_features
from support.kept_videos import keep, kept_store, new_video, segments_of
from support.matches import match_store
from support.still_vocabulary import TextVectors
from support.stores import FINGERPRINT, guard_of, running_store, vector_of
from vidlex.model.scoring import Scorer
from vidlex.model.types import FrameGeometry
from vidlex.service.errors import (
    ByteQuotaExceeded,
    FeatureGenerationMissing,
    InvalidParameter,
    Overloaded,
    WebhookConflict,
)
from vidlex.service.jobs.handlers import JobWork
from vidlex.service.jobs.records import Job, JobProgress
from vidlex.service.labels.index.label_index import LabelIndex
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.records import Label, LabelChanges, NewLabel
from vidlex.service.models.served_model import ModelFacts
from vidlex.service.retagging import backfill as backfill_module
from vidlex.service.retagging.backfill import EVENT, BackfillHandler, BackfillParams, labels_since
from vidlex.service.retagging.matches import MatchStore
from vidlex.service.retagging.scan import scan
from vidlex.service.videos.store import KeptVideoStore
from vidlex.service.webhooks.events import WebhookEvent, WebhookTarget
from vidlex.service.webhooks.store import WebhookStore

NAMESPACE, DIM = "team", 64
NAMES = ("red", "green", "blue", "round")
HOOK = WebhookTarget("https://hooks.example/")


@dataclass
class Hooks:
    """In place of a WebhookStore."""

    events: list[WebhookEvent] = field(default_factory=list)
    is_full: bool = False

    def queue_now(self, target: WebhookTarget, event: WebhookEvent) -> None:
        if self.is_full:
            raise WebhookConflict
        self.events.append(event)


@dataclass
class Team:
    """A vocabulary and kept videos, without a service. In place of a ModelRegistry and its Vocabulary."""

    client: redis.Redis
    folder: Path
    videos: KeptVideoStore
    store: LabelStore
    index: LabelIndex
    facts: ModelFacts
    hooks: Hooks = field(default_factory=Hooks)
    namespace: str = NAMESPACE
    num_in_use: int = 0
    labeler: TextVectors = field(default_factory=lambda: TextVectors(DIM))

    def acquire(self, namespace: str, client: str) -> Team:
        assert namespace == self.namespace
        self.num_in_use += 1
        return self

    def release(self) -> None:
        self.num_in_use -= 1

    def await_revision(self, min_revision: int, timeout_seconds: float) -> None:
        assert self.index.revision >= min_revision

    def add(self, name: str, **more: Any) -> Label:
        (label,) = self.store.add_many([(NewLabel(name, **more), vector_of(name, DIM))], FINGERPRINT)
        self.sync()
        assert isinstance(label, Label)
        return label

    def sync(self) -> None:
        """As IndexSync would."""
        rows = [row for batch in self.store.scan(FINGERPRINT) for row in batch if row.vector is not None]
        rows.sort(key=lambda row: row.label.id)
        vectors = np.stack([cast(NDArray[np.float32], row.vector) for row in rows])
        self.index.replace([([row.label for row in rows], vectors)], revision=self.store.revision())

    @property
    def matches(self) -> MatchStore:
        return match_store(self.client, self.folder)

    def run(
        self,
        job_id: str = "job_1",
        *,
        webhook: WebhookTarget | None = None,
        work: JobWork | None = None,
        matches: MatchStore | None = None,
        **params: Any,
    ) -> dict[str, Any]:
        handler = BackfillHandler(cast(Any, self), self.videos, matches or self.matches, cast(WebhookStore, self.hooks))
        job = Job(
            kind="backfill", namespace=NAMESPACE, client="key", params=BackfillParams(**params).as_json(),
            webhook=webhook, id=job_id, state="running", created_at_ms=0, queue_until_ms=0,
        )  # fmt: skip
        return dict(handler(job, work or work_of()))


def work_of(report: Any = lambda progress: None, cancelled: threading.Event | None = None) -> JobWork:
    return JobWork(time.monotonic() + 600, cancelled or threading.Event(), report, lambda kind, data: None)


def keep_near(team: Team, name: str, *near: str) -> str:
    """Segments at a cosine of 0.9 to each of these labels."""
    vectors = []
    for label in near:
        towards = vector_of(label, DIM)
        side = vector_of(f"{name} {label}", DIM)
        side -= (side @ towards) * towards
        vectors.append(0.9 * towards + np.sqrt(1 - 0.81) * side / np.linalg.norm(side))
    return team.videos.keep(new_video(name), FINGERPRINT, segments_of(len(near)), np.stack(vectors)).id


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    with running_store(tmp_path / "store") as client:
        guard = guard_of(client)
        facts = ModelFacts("model", FINGERPRINT, DIM, FrameGeometry(1), 1, Scorer(40.0, -32.0), 0.5)  # 0.5 at 0.8
        yield Team(
            client, tmp_path, kept_store(client, tmp_path, guard=guard), LabelStore(client, NAMESPACE, guard=guard),
            LabelIndex(DIM, FINGERPRINT), facts,
        )  # fmt: skip


def changes(result: dict[str, Any]) -> dict[str, tuple[set[str], set[str]]]:
    return {entry["name"]: (set(entry["gained_ids"]), set(entry["lost_ids"])) for entry in result["labels"]}


def test_gained_and_lost(team: Team) -> None:
    red, green = team.add("red"), team.add("green")
    a, b, c = keep_near(team, "a", "red"), keep_near(team, "b", "red", "green"), keep_near(team, "c", "blue")
    ids = [red.id, green.id]
    assert changes(team.run("1", label_ids=ids)) == {"red": ({a, b}, set()), "green": ({b}, set())}
    assert changes(team.run("2", label_ids=ids)) == {"red": (set(), set()), "green": (set(), set())}
    # A new video is gained, a removed one is nothing.
    d = keep_near(team, "d", "green", "red")
    team.videos.remove(NAMESPACE, b)
    assert changes(team.run("3", label_ids=ids)) == {"red": ({d}, set()), "green": ({d}, set())}
    # A threshold of the label, one of the request.
    team.store.update(red.id, LabelChanges(threshold=0.999))
    team.sync()
    assert changes(team.run("4", label_ids=[red.id])) == {"red": (set(), {a, d})}
    assert changes(team.run("5", label_ids=[red.id], min_score=0.2)) == {"red": ({a, d}, set())}
    # The name, and with it the vector.
    team.store.update(
        red.id, LabelChanges(name="blue", threshold=None), vector=vector_of("blue", DIM), fingerprint=FINGERPRINT
    )
    team.sync()
    result = team.run("6", label_ids=[red.id])
    assert changes(result) == {"blue": ({c}, {a, d})}
    assert (result["num_videos"], result["num_segments"], result["num_missing"]) == (3, 4, 0)
    assert result["vocabulary_revision"] == team.store.revision() and result["unknown_label_ids"] == []
    record, matched = cast(Any, team.matches.read(NAMESPACE, red.id))
    assert (record.num_matched, record.num_gained, record.num_lost, record.job_id) == (1, 1, 2, "6")
    assert [video.video_id for video in matched.page(None, after_id=None, limit=9)[0]] == [c]
    assert team.num_in_use == 0


def test_all_labels_since_a_revision(team: Team) -> None:
    red = team.add("red")
    keep_near(team, "a", "red")
    revision = team.store.revision()
    green, blue = team.add("green"), team.add("blue")
    team.store.update(red.id, LabelChanges(threshold=0.3))
    team.store.update(blue.id, LabelChanges(metadata={"a": 1}))
    team.sync()
    found = {entry["label_id"] for entry in team.run("1", since_revision=revision)["labels"]}
    assert found == {red.id, green.id, blue.id}
    last = team.store.revision()
    assert team.run("2", since_revision=last)["labels"] == []
    assert {entry["label_id"] for entry in team.run("3", since_revision=last - 1)["labels"]} == {blue.id}
    with pytest.raises(InvalidParameter, match="More than 1"):
        labels_since(cast(Any, team), 0, max_labels=1)
    with pytest.raises(Overloaded):  # the client has left

        def left() -> None:
            raise Overloaded

        labels_since(cast(Any, team), 0, check=left)


def test_removed_labels_are_forgotten(team: Team) -> None:
    red, green = team.add("red"), team.add("green")
    keep_near(team, "a", "red", "green")
    team.run("1", label_ids=[red.id, green.id])
    size = team.matches.num_bytes(NAMESPACE)
    team.store.remove(red.id)
    team.sync()
    result = team.run("2", label_ids=[red.id, green.id])
    assert result["unknown_label_ids"] == [red.id] and [x["label_id"] for x in result["labels"]] == [green.id]
    assert set(team.matches.records(NAMESPACE)) == {green.id}
    assert 0 < team.matches.num_bytes(NAMESPACE) < size
    assert len(list((team.folder / ".matches" / NAMESPACE).iterdir())) == 1


def test_videos_of_another_model_are_not_mixed_in(team: Team) -> None:
    red = team.add("red")
    other = keep(team.videos, "other", fingerprint="encoder-0")
    with pytest.raises(FeatureGenerationMissing):
        team.run("1", label_ids=[red.id])
    a = keep_near(team, "a", "red")
    result = team.run("2", label_ids=[red.id])
    assert changes(result) == {"red": ({a}, set())} and (result["num_videos"], result["num_missing"]) == (1, 1)
    team.videos.remove(NAMESPACE, a)
    team.videos.remove(NAMESPACE, other)
    assert team.run("3", label_ids=[red.id])["num_videos"] == 0  # no kept videos are no error


def test_an_attempt_continues_where_the_last_one_was_killed(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill_module, "_MAX_LABELS_AT_ONCE", 2)
    labels = [team.add(name) for name in NAMES]
    a = keep_near(team, "a", *NAMES)
    ids = [label.id for label in labels]
    cancelled = threading.Event()

    class Killed(BaseException): ...

    class Failing(MatchStore):
        num_left = 3

        def mark_told(self, *args: Any) -> None:
            self.num_left -= 1
            if not self.num_left:
                raise Killed  # behind the webhook of the third label, which is sent again therefore
            super().mark_told(*args)

    with pytest.raises(Killed):
        team.run(
            "1",
            label_ids=ids,
            webhook=HOOK,
            matches=Failing(team.client, team.folder, 2**30, guard=guard_of(team.client)),
        )
    assert len(team.hooks.events) == 3
    result = team.run("1", label_ids=ids, webhook=HOOK, work=work_of(cancelled=cancelled))
    assert changes(result) == {name: ({a}, set()) for name in NAMES}
    told = [event.data["label_id"] for event in team.hooks.events]
    assert sorted(told) == sorted([*ids, ids[2]])
    assert all(event.type == EVENT and event.data["gained_ids"] == [a] for event in team.hooks.events)
    assert changes(team.run("1", label_ids=ids, webhook=HOOK)) == changes(result)  # all done: the same result
    assert len(team.hooks.events) == 5


def test_webhooks_only_of_changes_that_are_wanted(team: Team) -> None:
    red = team.add("red")
    keep_near(team, "a", "red")
    team.run("1", label_ids=[red.id], webhook=replace(HOOK, events=("job.succeeded",)))
    assert team.hooks.events == []
    team.run("2", label_ids=[red.id], webhook=HOOK)
    assert team.hooks.events == []  # nothing changed
    keep_near(team, "b", "red")
    team.hooks.is_full = True
    assert team.run("3", label_ids=[red.id], webhook=HOOK)["num_gained"] == 1
    for number in range(150):
        keep_near(team, f"more {number}", "red")
    team.hooks.is_full = False
    assert team.run("4", label_ids=[red.id], webhook=HOOK)["num_gained"] == 150
    (event,) = team.hooks.events
    assert event.data["num_gained"] == 150 and len(event.data["gained_ids"]) == 100


def test_cancel_between_blocks(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidlex.service.retagging.scan._MAX_BLOCK", 10)
    monkeypatch.setattr("vidlex.service.retagging.scan._MIN_BLOCK", 10)
    red = team.add("red")
    for number in range(30):
        keep_near(team, str(number), "red", "green")
    reports: list[JobProgress] = []
    cancelled = threading.Event()

    def report(progress: JobProgress) -> None:
        reports.append(progress)
        cancelled.set()

    with pytest.raises(Overloaded):
        team.run("1", label_ids=[red.id], work=work_of(report, cancelled))
    (progress,) = reports
    assert (progress.unit, progress.total) == ("segments", 60) and progress.done < 60
    assert team.matches.records(NAMESPACE) == {}
    assert team.num_in_use == 0


def test_labels_with_many_matches_are_compared_in_turn(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    features = random_features(200, DIM, near=np.stack([vector_of(name, DIM) for name in NAMES]))
    for number, video in enumerate(features):
        team.videos.keep(new_video(str(number)), FINGERPRINT, video.segments, video.vectors.astype(np.float32))
    ids = [team.add(name, threshold=0.0).id for name in NAMES]
    sizes = []

    def limited(table: Any, scored: Any, on_block: Any = lambda num: None) -> Any:
        sizes.append(len(scored))
        return scan(table, scored, on_block, max_held=500)

    monkeypatch.setattr(backfill_module, "scan", limited)
    result = team.run("1", label_ids=ids)
    assert [entry["num_matched"] for entry in result["labels"]] == [200] * 4
    assert sizes == [4, 1, 1, 1, 1]


def test_quota_and_damage(team: Team) -> None:
    red, green = team.add("red"), team.add("green")
    a = keep_near(team, "a", "red", "green")
    small = match_store(team.client, team.folder, max_bytes=100)
    with pytest.raises(ByteQuotaExceeded):
        team.run("1", label_ids=[red.id, green.id], matches=small)
    assert set(team.matches.records(NAMESPACE)) == {red.id}
    assert len(list((team.folder / ".matches" / NAMESPACE).iterdir())) == 1
    (path,) = (team.folder / ".matches" / NAMESPACE).iterdir()
    path.write_bytes(path.read_bytes()[:50])
    assert team.matches.read(NAMESPACE, red.id) is None
    assert changes(team.run("2", label_ids=[red.id])) == {"red": ({a}, set())}  # as if it were the first
    assert team.matches.read(NAMESPACE, red.id) is not None
    (path,) = (team.folder / ".matches" / NAMESPACE).iterdir()
    path.unlink()
    assert team.matches.read(NAMESPACE, red.id) is None
