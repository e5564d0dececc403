"""`Client` and `AsyncClient` against a running service: every request, typed."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from support.client_kinds import KINDS, opened
from support.live import live_service
from support.scripted_http import Answer, problem, scripted
from support.serving import colour_video
from vidlex.service.client import calls, errors
from vidlex.service.client.async_client import AsyncClient
from vidlex.service.client.async_jobs import AsyncJob, AsyncJobs
from vidlex.service.client.client import Client
from vidlex.service.client.jobs import Job, Jobs
from vidlex.service.schemas.classify import ClassificationView, ClassifyParams
from vidlex.service.schemas.keys import NewKeyBody
from vidlex.service.schemas.labels import (
    LabelChangesBody,
    LabelFailureView,
    LabelResultView,
    LabelView,
    NewLabelBody,
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(
        tmp_path_factory.mktemp("client") / "data", VIDLEX_COLLECT_STATISTICS="true", VIDLEX_MAX_UPLOAD_BYTES="20000000"
    ) as address:
        yield address


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = colour_video(tmp_path_factory.mktemp("videos") / "r\u00e9d.mp4", "red")
    return path


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, url: str) -> Iterator[Any]:
    with opened(request.param, url) as found:
        for label in list(found.labels()):
            found.delete_label(label.id)
        yield found


def test_labels_from_creation_to_removal(client: Any) -> None:
    dog = client.create_label("dog", aliases=["hound"], categories=["animal"], threshold=0.25, metadata={"team": [1]})
    assert isinstance(dog, LabelView)
    assert (dog.name, dog.aliases, dog.categories, dog.threshold) == ("dog", ["hound"], ["animal"], 0.25)
    assert dog.metadata == {"team": [1]}
    with pytest.raises(errors.LabelExists) as caught:
        client.create_label("Dog")
    assert caught.value.existing_id == dog.id
    assert client.create_label("DOG", if_exists="return") == dog
    puppy = client.create_label("puppy", parents=["hound"])
    assert [parent.id for parent in puppy.parents] == [dog.id]
    assert client.get_label(dog.id) == client.find_label("HOUND") == client.find_label(dog.id) == dog

    changed = client.update_label(dog.id, threshold=None, if_match=dog.etag)
    assert changed.threshold is None and changed.aliases == ["hound"] and changed.revision > puppy.revision
    with pytest.raises(errors.PreconditionFailed):
        client.update_label(dog.id, name="cat", if_match=dog.etag)
    with pytest.raises(errors.PreconditionFailed):
        client.delete_label(dog.id, if_match=dog.etag)
    assert client.delete_label(dog.id, if_match="*") > changed.revision
    for missing in (dog.id, "lbl_a/../b?c=1", "dog", "", "\u200d"):
        with pytest.raises(errors.NotFound) as absent:
            client.find_label(missing)
        assert absent.value.code == "not_found"


def test_numbers_that_json_does_not_have(client: Any, red: Path) -> None:
    with pytest.raises(errors.RequestInvalid, match="JSON"):
        client.create_label("red", threshold=float("nan"))
    with pytest.raises(errors.RequestInvalid):
        client.classify(red, min_score=float("inf"))


def test_many_labels_and_their_pages(client: Any) -> None:
    entries: list[Any] = [f"label {i}" for i in range(10)] + [{"name": "a cat", "categories": ["animal"]}, "bad\u202e"]
    results = client.create_labels(entries)
    assert [result.index for result in results] == list(range(12))
    assert all(isinstance(result, LabelResultView) and result.status == 201 for result in results[:-1])
    failure = results[-1]
    assert isinstance(failure, LabelFailureView) and failure.error.code == "label_text_invalid"
    again = client.create_labels(entries[:2], if_exists="return")
    assert [result.status for result in again] == [200, 200]

    names = [label.name for label in client.labels(page_size=3)]
    assert names == [*(f"label {i}" for i in range(10)), "a cat"]
    pages = list(client.label_pages(page_size=3))
    assert [len(page.data) for page in pages] == [3, 3, 3, 2]
    assert len(list(client.label_pages(page_size=3, after=pages[1].last_id))) == 2
    assert [label.name for label in client.labels(category="Animal")] == ["a cat"]
    assert [label.name for label in client.labels(q="l 3", prefix="label", min_revision=0)] == ["label 3"]
    with pytest.raises(errors.RequestInvalid):
        list(client.labels(q="x" * 1000))


def test_pages_are_read_when_they_are_needed() -> None:
    with scripted() as server:
        server.answers = [problem(404, "not_found")]
        with Client(server.url) as client:
            iterator = client.labels()
            assert not server.asked
            with pytest.raises(errors.NotFound):
                next(iterator)


def test_cards(client: Any) -> None:
    red = client.create_label("red")
    client.create_label("green")
    card = client.label_card(red.id)
    assert card.id == red.id and [near.name for near in card.neighbours] == ["green"] and card.prompts
    assert client.preview_label("yellow").id is None
    good, bad = client.preview_labels([{"name": "blue"}, "a " * 30])
    assert good.card.name == "blue" and bad.error.code == "label_text_invalid"
    assert len(list(client.labels())) == 2


def test_a_video_is_a_path_bytes_or_a_file(client: Any, red: Path) -> None:
    client.create_label("red")
    content = red.read_bytes()
    seen: list[tuple[int, int | None]] = []

    class Unseekable(io.RawIOBase):
        def __init__(self) -> None:
            self.rest = io.BytesIO(content)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self.rest.readinto(buffer)

    with red.open("rb") as file:
        ways = (red, str(red), content, memoryview(content), io.BytesIO(content), file, Unseekable())
        answers = [client.classify(video, on_progress=lambda *at: seen.append(at), top_k=1) for video in ways]
    for answer in answers:
        assert isinstance(answer, ClassificationView)
        assert answer.labels == answers[0].labels and answer.receipt == answers[0].receipt
    assert answers[0].labels[0].name == "red" and answers[0].labels[0].matched
    assert seen == [(len(content), len(content))] * 6 + [(len(content), None)]


def test_options_of_a_classification(client: Any, red: Path) -> None:
    client.create_label("red", categories=["colour"])
    answer = client.classify(red, aggregate_by="segments", segment_ms=500, num_frames=1, include_categories=["colour"])
    assert len(answer.labels[0].segments) == 2
    named = client.classify(red, candidate_labels=["blue", "red"], end_ms=None, deadline_ms=100_000)
    assert (named.labels[0].id, named.labels[0].name) == (None, "red")
    with pytest.raises(errors.RequestInvalid) as caught:
        client.classify(red, start_ms=5, end_ms=1)
    assert "end_ms" in caught.value.detail and caught.value.errors


def test_bad_files(client: Any, tmp_path: Path) -> None:
    with pytest.raises(errors.VideoInvalid) as caught:
        client.classify(b"not a video")
    assert caught.value.status in (415, 422)
    with pytest.raises(errors.FileNotReadable, match=r"missing\.mp4: No such file") as missing:
        client.classify(tmp_path / "missing.mp4")
    assert missing.value.status is None and missing.value.problem is None
    with pytest.raises(errors.FileNotReadable):
        client.classify(tmp_path)
    with pytest.raises(TypeError, match="binary mode"):
        client.classify(io.StringIO("text"))
    with pytest.raises(TypeError):
        client.classify(7)


def test_an_upload_that_is_too_large_is_refused_before_its_end(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "large.mp4"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(errors.TooLarge) as caught:
        client.classify(path)
    assert caught.value.problem["max_bytes"] == 20_000_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_stream", [False, True])
def test_a_large_file_is_never_in_memory(tmp_path: Path, kind: str, as_stream: bool) -> None:
    path, size = tmp_path / "large.mp4", 100 * 2**20
    with path.open("wb") as file:
        file.truncate(size)
    with scripted() as server, opened(kind, server.url) as client, path.open("rb") as stream:
        server.answers = [problem(422, "undecodable_video")]
        tracemalloc.start()
        try:
            with pytest.raises(errors.VideoInvalid):
                client.classify(stream if as_stream else path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert server.asked[0].num_bytes > size and peak < 16 * 2**20


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_changes_while_it_is_sent(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "changing.mp4"
    path.write_bytes(b"v" * 2**20)
    sent: list[int] = []

    def shorten(num_sent: int, _: int | None) -> None:
        sent.append(num_sent)
        if len(sent) == 1:
            with path.open("r+b") as file:
                file.truncate(num_sent)

    def lengthen(num_sent: int, _: int | None) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    with scripted() as server, opened(kind, server.url) as client:
        server.answers = [problem(422, "undecodable_video")]
        with pytest.raises(errors.VideoInvalid):
            client.classify(path, on_progress=lengthen)
        assert server.asked[0].num_bytes == int(server.asked[0].headers["content-length"]) < 2**20 + 1000
        path.write_bytes(b"v" * 2**20)
        with pytest.raises(errors.FileNotReadable, match="became shorter"):
            client.classify(path, on_progress=shorten)


def test_what_a_progress_callback_raises_ends_the_upload(client: Any, red: Path) -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        client.classify(red, on_progress=stop)
    assert client.ready().status == "ready"


def test_models_and_calibration(client: Any, red: Path, tmp_path: Path) -> None:
    client.create_label("red")
    served = client.models().served
    assert served.model == "dummy" and served.loaded
    with pytest.raises(errors.Conflict) as caught:
        client.activate_model()
    assert caught.value.code == "model_conflict"
    with pytest.raises(errors.Conflict):
        client.rollback_model()
    with pytest.raises(errors.Conflict):
        client.diff_models(limit=5)
    with pytest.raises(errors.RequestInvalid):
        client.prepare_model("no-such-model")
    with pytest.raises(errors.Conflict):
        client.drop_model(served.fingerprint)

    assert client.calibration().fingerprint is None
    for number in range(8):
        client.classify(red.read_bytes() + bytes([number]) if number else colour_video(tmp_path / "blue.mp4", "blue"))
    dry = client.calibrate({"source": "recent", "dry_run": True}, limit=1)
    assert dry.fingerprint and not dry.stored and client.calibration(limit=0).fingerprint is None
    stored = client.calibrate({"source": "recent"})
    assert stored.stored and [row.name for row in stored.labels] == ["red"]
    assert client.calibration(limit=0).fingerprint == stored.fingerprint == client.classify(red).calibration
    assert client.delete_calibration() > stored.vocabulary_revision


def test_health(client: Any) -> None:
    client.live()
    ready = client.ready()
    assert ready.status == "ready" and ready.checks["model"].ok
    assert "# HELP" in client.metrics()


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_that_is_not_ready_says_so(kind: str) -> None:
    with scripted() as server, opened(kind, server.url) as client:
        server.answers = [problem(503, "x")]
        with pytest.raises(errors.UnexpectedAnswer):
            client.ready()
        answer = {"status": "starting", "checks": {"model": {"ok": False, "detail": "is loading", "new": 1}}}
        server.answers = [Answer(503, answer, {"Retry-After": "2"})]
        assert client.ready().status == "starting"


def test_keys_and_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with live_service(tmp_path / "data") as url, Client(url) as first:
        admin = first.create_key("admin", name="me")
        with pytest.raises(errors.NotAuthorized):
            list(first.labels())
        for kind in KINDS:
            with opened(kind, url, admin.key) as client:
                reader = client.create_key("read", namespace="zoo", expires_in_seconds=3600, max_labels=None)
                assert {key.id for key in client.list_keys()} >= {admin.id, reader.id}
            with opened(kind, url, reader.key, namespace="zoo") as client:
                assert list(client.labels()) == []
                with pytest.raises(errors.NotAllowed):
                    client.create_label("tiger")
            monkeypatch.setenv("VIDLEX_URL", url + "/")
            monkeypatch.setenv("VIDLEX_API_KEY", f" {admin.key}\n")
            monkeypatch.setenv("VIDLEX_NAMESPACE", f"zoo-{kind}")
            with opened(kind) as client:
                assert client.url == url
                client.create_label("lion")
                client.revoke_key(reader.id)
                with pytest.raises(errors.NotFound):
                    client.revoke_key("a?b=c/d")
                with pytest.raises(errors.Conflict):
                    client.revoke_key(admin.id)
            with opened(kind, namespace="other") as client:
                assert list(client.labels()) == []
            for name in ("VIDLEX_URL", "VIDLEX_API_KEY", "VIDLEX_NAMESPACE"):
                monkeypatch.delenv(name)


def test_both_clients_have_the_same_methods() -> None:
    public = {name for name in vars(Client) if not name.startswith("_")}
    assert public == {name for name in vars(AsyncClient) if not name.startswith("_")}
    for name in {name for name in public if callable(getattr(Client, name))} - {"run"}:
        ours, other = signature(getattr(Client, name)), signature(getattr(AsyncClient, name))
        assert list(ours.parameters.values()) == list(other.parameters.values()), name


def test_jobs_of_both_clients_have_the_same_methods() -> None:
    for one, other in ((Jobs, AsyncJobs), (Job, AsyncJob)):
        names = {name for name in vars(one) if not name.startswith("_")}
        assert names == {name for name in vars(other) if not name.startswith("_")}
        for name in {name for name in names if callable(getattr(one, name))}:
            ours, theirs = signature(getattr(one, name)), signature(getattr(other, name))
            assert list(ours.parameters.values()) == list(theirs.parameters.values()), name


def test_the_options_are_those_of_the_service() -> None:
    assert calls.KeepingOptions.__optional_keys__ == set(ClassifyParams.model_fields)
    assert calls.LabelFields.__optional_keys__ | {"name"} == set(NewLabelBody.model_fields)
    assert calls.LabelChanges.__optional_keys__ == set(LabelChangesBody.model_fields)
    assert calls.KeyOptions.__optional_keys__ | {"scope"} == set(NewKeyBody.model_fields)
