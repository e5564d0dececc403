"""The command line with a running service and the dummy model, which scores colours."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from support.live import live_service
from support.processes import PATIENCE_SECONDS, until
from vidlex.model.specs import DEFAULT_MODEL
from vidlex.service.cli import app
from vidlex.service.commands.sample_videos import write_colour_video

runner = CliRunner()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(tmp_path_factory.mktemp("cli") / "data") as address:
        yield address


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_video(tmp_path_factory.mktemp("videos") / "red.mp4", (255, 0, 0))


@pytest.fixture(autouse=True)
def empty_vocabulary(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for label in http.get("/labels", params={"limit": 1000}).json()["data"]:
            http.delete(f"/labels/{label['id']}").raise_for_status()


def vidlex(url: str, *arguments: str | Path, input: str | None = None) -> Result:
    return runner.invoke(app, [str(a) for a in arguments], env={"VIDLEX_URL": url, "COLUMNS": "160"}, input=input)


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_labels_are_added_listed_shown_and_removed(url: str) -> None:
    added = vidlex(url, "labels", "add", "red", "deep blue", "--category", "colour", "--threshold", "0.7")
    assert added.exit_code == 0, added.output
    assert re.search(r"^added deep blue \(lbl_\w+\)$", added.stdout, re.MULTILINE)

    listed = lines(vidlex(url, "labels", "list", "--json"))
    assert [label["name"] for label in listed] == ["red", "deep blue"]
    assert listed[0]["categories"] == ["colour"] and listed[0]["threshold"] == 0.7
    assert "deep blue" in vidlex(url, "labels", "list", "--query", "blue").stdout
    assert "red" not in vidlex(url, "labels", "list", "--query", "blue").stdout
    assert len(lines(vidlex(url, "labels", "list", "--limit", "1", "--json"))) == 1

    shown = vidlex(url, "labels", "show", "red").stdout
    assert "categories: colour\n" in shown and "aliases:\n" in shown, "plain text; unset fields are empty"

    by_name = lines(vidlex(url, "labels", "show", "Deep Blue", "--json"))[0]
    by_id = lines(vidlex(url, "labels", "show", listed[1]["id"], "--json"))[0]
    assert by_name == by_id == listed[1]

    removed = vidlex(url, "labels", "remove", "no such", "red")
    assert removed.exit_code == 1, "one of the labels does not exist"
    assert "removed red" in removed.stdout and "no such" in removed.stderr
    assert [label["name"] for label in lines(vidlex(url, "labels", "list", "--json"))] == ["deep blue"]


def test_a_narrow_list_shows_whole_ids(url: str) -> None:
    assert vidlex(url, "labels", "add", "a label with a rather long name", "--category", "colour").exit_code == 0
    (label,) = lines(vidlex(url, "labels", "list", "--json"))
    listed = runner.invoke(app, ["labels", "list"], env={"VIDLEX_URL": url, "COLUMNS": "80"})
    assert label["id"] in listed.stdout


def test_ids_are_quoted_in_addresses(url: str) -> None:
    for command in (("labels", "show", "lbl_a?limit=1"), ("keys", "revoke", "a?b=c")):
        refused = vidlex(url, *command)
        assert refused.exit_code == 1 and "has this id (not_found)" in refused.stderr, refused.stderr


def test_card_and_preview_show_how_labels_are_encoded(url: str) -> None:
    vidlex(url, "labels", "add", "red", "green")
    card = lines(vidlex(url, "labels", "card", "RED", "--json"))[0]
    assert card["name"] == "red" and [near["name"] for near in card["neighbours"]] == ["green"]
    shown = vidlex(url, "labels", "card", "red").stdout
    assert "prompt" in shown and "green" in shown
    mixed = vidlex(url, "labels", "preview", "yellow", "a " * 20, "--json")
    assert mixed.exit_code == 1
    assert [found["name"] for found in lines(mixed)] == ["yellow"]
    assert {label["name"] for label in lines(vidlex(url, "labels", "list", "--json"))} == {"red", "green"}


def test_existing_label_is_an_error_or_is_returned(url: str) -> None:
    vidlex(url, "labels", "add", "red")
    again = vidlex(url, "labels", "add", "Red", "green")
    assert again.exit_code == 1
    assert "added green" in again.stdout, "the other label is added"
    assert "(label_exists)" in again.stderr and len(again.stderr.splitlines()) == 1
    returned = vidlex(url, "labels", "add", "RED", "--if-exists", "return")
    assert returned.exit_code == 0 and returned.stdout.startswith("already exists: red")


def test_invalid_label_text_is_reported_with_its_code(url: str) -> None:
    result = vidlex(url, "labels", "add", "bad\u202ename", "--json")
    assert result.exit_code == 1
    assert lines(result)[0]["status"] == 422
    assert json.loads(result.stderr)["error"]["code"] == "label_text_invalid"


def test_export_and_import_round_trip(url: str, tmp_path: Path) -> None:
    vidlex(url, "labels", "add", "green", "--alias", "verdant", "--category", "colour")
    vidlex(url, "labels", "add", "red", "blue")
    for suffix in ("jsonl", "json", "csv"):
        file = tmp_path / f"labels.{suffix}"
        assert vidlex(url, "labels", "export", file).exit_code == 0
        vidlex(url, "labels", "remove", "red", "green")
        result = vidlex(url, "labels", "import", file)
        assert result.stdout.startswith("2 added, 1 already existed, 0 failed (")
        assert result.stdout.endswith(" labels/s)\n")
        label = lines(vidlex(url, "labels", "show", "verdant", "--json"))[0]
        assert label["name"] == "green" and label["categories"] == ["colour"]
    piped = vidlex(url, "labels", "import", "-", "--format", "txt", input="# more\nyellow\n")
    assert piped.stdout.startswith("1 added")
    assert '{"name": "yellow"}' in vidlex(url, "labels", "export").stdout


def test_classify_continues_after_a_failed_file(url: str, red: Path, tmp_path: Path) -> None:
    vidlex(url, "labels", "add", "red", "green", "yellow")
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    result = vidlex(url, "classify", red, text, tmp_path / "missing.mp4", red, "--json", "--top-k", "2")
    assert result.exit_code == 1
    first, bad, missing, last = lines(result)
    assert [found["name"] for found in first["labels"]] == ["red", "yellow"]
    assert first["labels"][0]["score"] == pytest.approx(0.9933, abs=1e-3)
    assert bad["file"] == str(text) and bad["error"]["status"] in (415, 422)
    assert missing["error"]["detail"].endswith("No such file or directory")
    assert last["labels"] == first["labels"]


def test_classify_prints_a_table(url: str, red: Path) -> None:
    result = vidlex(url, "classify", red, "--label", "red", "--label", "green", "--min-score", "0.5")
    assert result.exit_code == 0, result.output
    assert "0.993" in result.stdout and "green" not in result.stdout
    assert "320x240, 2.0 s, h264" in result.stdout


def test_classify_prints_segments(url: str, red: Path) -> None:
    result = vidlex(url, "classify", red, "--label", "red", "--aggregate-by", "segments", "--segment-ms", "1000")
    assert result.exit_code == 0, result.output
    assert "0.0 to 1.0 s" in result.stdout and "1.0 to 2.0 s" in result.stdout


def test_rejected_request_shows_the_message_of_the_service(url: str, red: Path) -> None:
    result = vidlex(url, "classify", red, "--start-ms", "2000", "--end-ms", "1000")
    assert result.exit_code == 1
    assert "end_ms" in result.stderr and "(invalid_parameter)" in result.stderr


# --- commands that start processes


def clean_environment(tmp_path: Path) -> dict[str, str]:
    weights = ("VIDLEX_CACHE_DIR", "VIDLEX_WHEELS")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_") or key in weights}
    return inherited | {"VIDLEX_DATA_DIR": str(tmp_path / "data"), "TMPDIR": str(tmp_path), "VIDLEX_MODEL": "dummy"}


def test_demo_exits_and_uses_another_port_if_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "vidlex.service.cli", "demo", "--exit", "--json"]
        environment = clean_environment(tmp_path) | {"VIDLEX_PORT": str(port)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["mean_precision"] == 1.0 and not shown["url"].endswith(f":{port}")
    assert not list(tmp_path.iterdir()), "all files are deleted"
    with pytest.raises(httpx.TransportError):
        httpx.get(shown["url"], timeout=60, trust_env=False)


def test_demo_of_the_shipped_checkpoint_is_accurate(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vidlex.service.cli", "demo", "--exit", "--json", "--model", "emoji-small"]
    done = subprocess.run(command, env=clean_environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["mean_precision"] > 0.6 and len(shown["results"]) >= 3
    assert all(len(result["labels"]) >= 20 for result in shown["results"]), "includes labels that are in no video"


def test_the_demo_of_the_default_model_names_what_real_videos_show(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vidlex.service.cli", "demo", "--exit", "--json", "--model", DEFAULT_MODEL]
    done = subprocess.run(command, env=clean_environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["mean_precision"] >= 0.5
    ranked = {r["file"]: [label["name"] for label in r["labels"]] for r in shown["results"]}
    assert all(len(names) == 40 for names in ranked.values())
    assert set(ranked["carphone_pristine.mp4"][:4]) == {"suit", "person", "man", "bow tie"}
    assert {"street", "person"} <= set(ranked["bikes.mp4"][:4])
    assert ranked["bigbuckbunny.mp4"][0] == "grass"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_demo_stops_its_service_when_it_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "vidlex.service.cli", "demo", "--json"]
    environment = clean_environment(tmp_path) | {"VIDLEX_PORT": "0"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        assert httpx.get(f"{url}/readyz", timeout=60, trust_env=False).status_code == 200, (
            "the service is still running"
        )
        # An open connection must not delay the stop.
        with httpx.stream("GET", f"{url}/livez", timeout=60, trust_env=False) as held:
            held.read()
            process.send_signal(number)
            process.wait(PATIENCE_SECONDS)
    assert process.returncode == {signal.SIGINT: 0, signal.SIGTERM: 130, signal.SIGKILL: -9}[number]
    wait_until_closed(url)
    if number != signal.SIGKILL:
        assert not list(tmp_path.iterdir())


def wait_until_closed(url: str) -> None:
    """After SIGKILL of the demo, the kernel signals the service, which then takes a moment to exit."""
    host, port = url.removeprefix("http://").split(":")

    def is_closed() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) != 0

    until(is_closed)


def test_doctor_reports_problems_and_migrate_is_idempotent(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path)
    doctor = runner.invoke(app, ["doctor", "--json"], env=environment)
    report = json.loads(doctor.stdout)
    found = {finding["what"]: finding for finding in report["findings"]}
    assert doctor.exit_code == 0 and report["healthy"], report
    assert found["decoder"]["detail"].startswith("decodes h264 in mp4 with PyAV ")
    assert found["isolation"]["detail"].startswith(("full", "partial", "none"))
    assert found["label store"]["status"] == "ok"

    broken = runner.invoke(app, ["doctor"], env=environment | {"VIDLEX_MODEL": "nothing", "VIDLEX_PROT": "1"})
    assert broken.exit_code == 1
    assert "VIDLEX_PORT" in broken.stdout, "a misspelt variable is reported"

    first = runner.invoke(app, ["migrate", "--json"], env=environment)
    applied = ["m001_initial", "m002_parents_and_prefixes", "m003_record_checksums", "m004_namespace_bytes"]
    assert json.loads(first.stdout)["applied"] == applied, first.output
    assert json.loads(runner.invoke(app, ["migrate", "--json"], env=environment).stdout)["applied"] == []


def test_namespace_is_read_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDLEX_NAMESPACE", "zoo")
    assert vidlex(url, "labels", "add", "tiger", "--if-exists", "return").exit_code == 0
    monkeypatch.delenv("VIDLEX_NAMESPACE")
    assert vidlex(url, "labels", "list").stdout.strip() == "no labels"


def test_classify_without_labels_prints_a_message(url: str, red: Path) -> None:
    result = vidlex(url, "classify", red, "--frame-policy", "keyframes", "--deadline-ms", "60000")
    assert result.exit_code == 0, result.output
    assert "no labels" in result.stdout and "score" not in result.stdout and "None" not in result.stdout
