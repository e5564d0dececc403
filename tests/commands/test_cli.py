"""The command line without a service: options, label files, errors and exit codes."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vidlex.service.cli import app
from vidlex.service.commands.connection import describe
from vidlex.service.commands.demo import find_samples, mean_precision
from vidlex.service.labels.files import LabelFileError, format_of, read, write

runner = CliRunner()


@pytest.fixture
def port_in_use() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A reserved port that does not listen."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def test_version_is_printed() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("vidlex ")


def test_importing_the_command_line_is_fast() -> None:
    """Each of these packages takes a tenth of a second or more to import."""
    heavy = {"torch", "fastapi", "uvicorn", "transformers", "open_clip", "numpy", "redis", "faiss", "httpx", "pydantic"}
    code = "import sys, vidlex.service.cli; print(*set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())


def test_unreachable_service_is_a_one_line_error_with_exit_code_3(unused_port: int) -> None:
    url = f"http://127.0.0.1:{unused_port}"
    result = runner.invoke(app, ["labels", "list", "--url", url])
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: no service at {url}")
    assert len(result.stderr.splitlines()) == 1

    result = runner.invoke(app, ["labels", "list", "--url", url, "--json"])
    assert result.exit_code == 3
    assert json.loads(result.stderr)["error"]["detail"].startswith("no service at")


def test_url_is_read_from_the_environment(unused_port: int) -> None:
    result = runner.invoke(app, ["labels", "list"], env={"VIDLEX_URL": f"http://127.0.0.1:{unused_port}"})
    assert f":{unused_port}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["labels", "list", "--url", "ftp://x"], 2, "http://"),
        (["labels", "add", "a", "b", "--alias", "c"], 2, "--alias"),
        (["labels", "import", "no-such-file.txt"], 1, "No such file"),
        (["labels", "import", "labels.xlsx"], 2, "--format"),
        (["classify", "no-such-file.mp4"], 1, "no-such-file.mp4: No such file"),
        (["serve", "--port", "99999"], 2, "VIDLEX_PORT"),
        (["demo", "--model", "no-such-model"], 2, "no-such-model"),
        (["eval", "no-such-manifest.jsonl"], 1, "not a file"),
        (["eval", __file__, "--model", "no-such-model"], 2, "no-such-model"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_user_error_is_reported_without_traceback(arguments: list[str], exit_code: int, words: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == exit_code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_interrupt_exits_with_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidlex.service.commands.labels.app.connected", interrupt)
    assert runner.invoke(app, ["labels", "list"]).exit_code == 130


# --- label files


def parse(text: str, kind: Any) -> list[dict[str, Any]]:
    return list(read(io.StringIO(text, newline="\n"), kind))


def dump(labels: list[dict[str, Any]], kind: Any) -> str:
    stream = io.StringIO(newline="")
    write(stream, labels, kind)
    return stream.getvalue()


names = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).map(str.strip).filter(bool)
label = st.fixed_dictionaries(
    {"name": names.filter(lambda name: not name.startswith("#"))},
    optional={
        "aliases": st.lists(names.filter(lambda name: "|" not in name), min_size=1, max_size=3),
        "categories": st.lists(names.filter(lambda name: "|" not in name), min_size=1, max_size=3),
        "threshold": st.floats(0, 1),
        "metadata": st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), min_size=1, max_size=2),
    },
)


@settings(deadline=None)
@given(st.lists(label))
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_exported_labels_can_be_imported(kind: Any, labels: list[dict[str, Any]]) -> None:
    stored = [{"id": "lbl_1", "revision": 3, "aliases": [], "threshold": None, **entry} for entry in labels]
    assert parse(dump(stored, kind), kind) == labels


def test_text_file_is_a_list_of_names() -> None:
    assert parse("# comment\nred panda\n\n  unboxing \n", "txt") == [{"name": "red panda"}, {"name": "unboxing"}]
    assert dump([{"name": "red panda", "aliases": ["firefox"]}], "txt") == "red panda\n"


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("{", "json", "not JSON"),
        ('{"name": "a"}\n{"nom": "b"}\n', "jsonl", "line 2"),
        ("label,threshold\na,1\n", "csv", "`name`"),
        ("name,threshold\na,much\n", "csv", "line 2"),
        ('{"things": []}', "json", "list of labels"),
    ],
)
def test_invalid_file_names_the_line(text: str, kind: Any, words: str) -> None:
    with pytest.raises(LabelFileError, match=words):
        parse(text, kind)


def test_format_follows_the_suffix() -> None:
    assert format_of(Path("a.CSV"), None) == "csv"
    assert format_of(Path("-"), None) == "jsonl"
    assert format_of(Path("a.csv"), "txt") == "txt"


# --- messages and samples


def test_describe_includes_the_code() -> None:
    assert describe({"detail": "Too long", "code": "video_too_long"}) == "Too long (video_too_long)"
    assert describe({"title": "HTTP 502 Bad Gateway"}) == "HTTP 502 Bad Gateway"


def test_mean_precision_counts_true_labels_in_the_top_n() -> None:
    def answer(*ranked: str) -> dict[str, Any]:
        return {"labels": [{"name": name, "score": 1 - i / 10} for i, name in enumerate(ranked)]}

    assert mean_precision([(answer("a", "b", "c"), frozenset("ab"))]) == 1.0
    assert mean_precision([(answer("c", "a", "b"), frozenset("ab"))]) == 0.5
    assert mean_precision([(answer("b", "a"), frozenset("a")), (answer("a"), frozenset("a"))]) == 0.5


def test_dummy_samples_are_written_as_videos(tmp_path: Path) -> None:
    samples = find_samples("dummy", tmp_path)
    assert all(path.stat().st_size > 500 for path, _ in samples.videos)
    assert {name for _, truth in samples.videos for name in truth} < set(samples.labels)


def test_checkpoint_samples_are_read(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "samples.json").write_text('{"a.mp4": ["dog", "beach"], "b.mp4": ["dog", "spinning"]}')
    (tmp_path / "config.json").write_text(json.dumps({"trained_labels": ["dog", *(f"thing {i}" for i in range(100))]}))
    samples = find_samples(str(tmp_path), tmp_path)
    assert samples.videos[0] == (tmp_path / "samples" / "a.mp4", frozenset({"dog", "beach"}))
    assert samples.labels[:3] == ("beach", "dog", "spinning")
    assert len(samples.labels) == len(set(samples.labels)) == 20
