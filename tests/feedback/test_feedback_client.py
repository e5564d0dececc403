"""`Client.feedback`, `AsyncClient.feedback` and `vidlex feedback` against a running service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from typer.testing import CliRunner

from support.judgements import judgement, sha256_of, thirty
from support.live import live_service
from vidlex.service.cli import app
from vidlex.service.client.async_client import AsyncClient
from vidlex.service.client.client import Client
from vidlex.service.client.errors import Conflict, NotFound, PreconditionFailed, RequestInvalid
from vidlex.service.schemas.feedback import JudgementBody


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(tmp_path_factory.mktemp("client") / "data") as url:
        yield url


def test_the_client_does_the_loop(url: str) -> None:
    with Client(url) as client:
        label = client.create_label("red")
        one = client.feedback.judge(right=True, sha256=sha256_of("one"), label="red", note="sure").judgements[0]
        assert (one.note, one.score, one.scored_by) == ("sure", None, None)
        body = JudgementBody.model_validate({"right": False, "sha256": sha256_of("two"), "label_id": label.id})
        stored = client.feedback.add([*thirty("red"), body])
        assert stored.labels[0].num_judgements == 32
        listed = list(client.feedback.list(label.id, page_size=7))
        assert len(listed) == 32 and listed[-1].id == one.id
        client.feedback.remove(one.id)
        with pytest.raises(NotFound):
            client.feedback.remove(one.id)
        assert [(item.label, item.num_judgements) for item in client.feedback.labels()] == [("red", 31)]
        fit = client.feedback.fit(label.id)
        assert fit.num_unscored == 1 and fit.threshold is not None
        with pytest.raises(PreconditionFailed):
            client.feedback.apply(label.id, proposal="another")
        with pytest.raises(PreconditionFailed):
            client.feedback.apply(label.id, if_match="1-1")
        applied = client.feedback.apply(label.id, proposal=fit.proposal, if_match=client.get_label(label.id).etag)
        assert client.get_label(label.id).threshold == applied.threshold == fit.threshold
        reverted = client.feedback.revert(label.id)
        assert [version.id for version in client.feedback.versions(label.id)] == [reverted.id, applied.id]
        with pytest.raises(Conflict) as conflict:
            client.feedback.revert(label.id)
        assert conflict.value.code == "feedback_conflict"
        with pytest.raises(RequestInvalid):
            client.feedback.add([])


def test_the_client_for_asyncio_does_the_same(url: str) -> None:
    async def loop() -> None:
        async with AsyncClient(url) as client:
            label = await client.create_label("green")
            await client.feedback.judge(right=True, sha256=sha256_of("one"), label="green")
            await client.feedback.add(thirty("green"))
            listed = [item async for item in client.feedback.list(label.id, page_size=7)]
            assert len(listed) == 31
            await client.feedback.remove(listed[-1].id)
            assert "green" in [item.label async for item in client.feedback.labels(page_size=1)]
            fit = await client.feedback.fit(label.id, target_precision=0.7)
            applied = await client.feedback.apply(label.id, target_precision=0.7, proposal=fit.proposal)
            reverted = await client.feedback.revert(label.id)
            versions = await client.feedback.versions(label.id)
            assert [version.id for version in versions] == [reverted.id, applied.id]

    with start_blocking_portal() as portal:
        portal.call(loop)


def run(url: str, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["feedback", *arguments, "--url", url], env={"COLUMNS": "200", "VIDLEX_API_KEY": ""})
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_command_does_the_loop(url: str, tmp_path: Path) -> None:
    with Client(url) as client:
        label = client.create_label("blue")
    file = tmp_path / "review.jsonl"
    file.write_text("\n".join(json.dumps(item) for item in thirty("blue")) + "\n\n")
    assert "30 judgements" in run(url, "add", "--file", str(file))
    run(url, "add", "Blue", "--wrong", "--video", sha256_of("one"), "--score", "0.9", "--fingerprint", "dummy-1")
    listed = lines(run(url, "list", "blue", "--json"))
    assert len(listed) == 31
    assert {item["right"] for item in listed} == {True, False}
    run(url, "remove", listed[0]["id"])
    assert "blue" in run(url, "list")
    shown = run(url, "fit", "blue")
    assert "precision" in shown and "0.500 ->" in shown and "random sample" in shown
    (applied,) = lines(run(url, "fit", "blue", "--apply", "--json"))
    with Client(url) as client:
        assert client.get_label(label.id).threshold == applied["threshold"]
    assert "of the model" in run(url, "revert", "blue")
    assert [version["kind"] for version in lines(run(url, "versions", "blue", "--json"))] == ["revert", "fit"]
    assert "revert" in run(url, "versions", "blue")
    run(url, "revert", "blue", code=1)


def test_the_command_refuses_what_it_cannot_send(url: str, tmp_path: Path) -> None:
    for arguments in (["add"], ["add", "red"], ["add", "red", "--right"], ["add", "red", "--file", "x"]):
        run(url, *arguments, code=2)
    for text in ("", "[]\n", "{\n", json.dumps(judgement("a", "no such label", True))):
        file = tmp_path / "bad.jsonl"
        file.write_text(text)
        run(url, "add", "--file", str(file), code=1)
    run(url, "add", "--file", str(tmp_path / "none"), code=1)
