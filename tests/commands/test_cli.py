"""The command line without a service: options, files, errors, exit codes. With one: test_cli_service.py."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vidlex.service.cli import app
from vidlex.service.commands.client import describe
from vidlex.service.commands.demo import find_samples, right_share
from vidlex.service.commands.label_files import format_of, read, write
from vidlex.service.commands.options import as_command
from vidlex.service.commands.output import CommandError

runner = CliRunner()


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that is reserved, but on which nothing listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def test_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("vidlex ")


def test_start_is_light() -> None:
    """Each of these would cost a second or more at every call of `vidlex labels ...`."""
    heavy = {"torch", "fastapi", "uvicorn", "transformers", "open_clip", "numpy", "redis", "faiss"}
    code = "import sys, vidlex.service.cli; print(*set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize(
    "command",
    ["serve", "demo", "labels add", "labels import", "classify", "doctor", "migrate", "eval", "weights fetch"],
)
def test_every_command_explains_itself_and_speaks_json(command: str) -> None:
    result = runner.invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_no_service_is_one_clear_line_and_its_own_exit_code(unused_port: int) -> None:
    url = f"http://127.0.0.1:{unused_port}"
    result = runner.invoke(app, ["labels", "list", "--url", url])
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: no service answers at {url}")
    assert len(result.stderr.splitlines()) == 1

    result = runner.invoke(app, ["labels", "list", "--url", url, "--json"])
    assert result.exit_code == 3
    assert json.loads(result.stderr)["error"]["detail"].startswith("no service answers")


def test_url_from_the_environment(unused_port: int) -> None:
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
        (["demo", "--model", "no-such-model"], 1, "no-such-model"),
        (["eval", "no-such-manifest.jsonl"], 1, "not a file"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_errors_of_the_user(arguments: list[str], exit_code: int, words: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == exit_code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_serve_says_that_a_port_is_taken(taken_port: int) -> None:
    result = runner.invoke(app, ["serve", "--port", str(taken_port), "--model", "dummy"])
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{taken_port}" in result.stderr


def test_serve_ends_with_why_it_could_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vidlex.service.cli", "serve", "--port", "0", "--data-dir", str(tmp_path)]
    command += ["--model", "no-such-model"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    said = " ".join(done.stderr[done.stderr.rindex("error:") :].split())
    assert said.startswith("error: the service could not start: it failed while loading the model: no model 'no-such-")
    assert "emoji-small" in said, "what there is instead"


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidlex.service.commands.labels.ServiceClient", interrupted)
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


@settings(deadline=None)  # a busy machine is no fault of the code
@given(st.lists(label))
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_what_is_exported_can_be_imported(kind: Any, labels: list[dict[str, Any]]) -> None:
    stored = [{"id": "lbl_1", "revision": 3, "aliases": [], "threshold": None, **entry} for entry in labels]
    assert parse(dump(stored, kind), kind) == labels


def test_a_plain_list_of_names() -> None:
    assert parse("# mine\nred panda\n\n  unboxing \n", "txt") == [{"name": "red panda"}, {"name": "unboxing"}]
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
def test_a_bad_file_says_where(text: str, kind: Any, words: str) -> None:
    with pytest.raises(CommandError, match=words):
        parse(text, kind)


def test_the_format_follows_the_suffix() -> None:
    assert format_of(Path("a.CSV"), None) == "csv"
    assert format_of(Path("-"), None) == "jsonl"
    assert format_of(Path("a.csv"), "txt") == "txt"


# --- options from signatures


@dataclass(frozen=True)
class RunConfig:
    steps: int = 3
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)
    fast: bool = True
    half: bool | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be positive")


@dataclass(frozen=True)
class PartConfig:
    steps: int = 7


def call(entry: Any, arguments: list[str], **defaults: Any) -> Any:
    small = typer.Typer(pretty_exceptions_enable=False)
    small.command()(as_command(entry, defaults))
    return runner.invoke(small, arguments)


def test_dataclass_fields_become_options() -> None:
    seen: list[Any] = []

    def entry(config: RunConfig, part: PartConfig, out: Path, resume: bool = False) -> dict[str, int]:
        """Run."""
        seen.append((config, part, out, resume))
        return {"answer": 42}

    arguments = [
        "--steps",
        "5",
        "--kind",
        "b",
        "--sizes",
        "8",
        "--sizes",
        "9",
        "--no-fast",
        "--part-steps",
        "1",
        "--resume",
        "--json",
    ]
    result = call(entry, [*arguments, "--resume", "--json"], out=Path("runs/x"))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"answer": 42}
    expected = RunConfig(steps=5, kind="b", sizes=(8, 9), fast=False)
    assert seen == [(expected, PartConfig(steps=1), Path("runs/x"), True)]
    assert call(entry, ["--no-half"], out=Path("x")).exit_code == 0
    assert call(entry, ["--half"], out=Path("x")).exit_code == 0
    assert [config.half for config, _, _, _ in seen] == [None, False, True]
    assert call(entry, []).exit_code == 2, "out has no default"


def test_refused_settings_are_an_error_not_a_traceback() -> None:
    def entry(config: RunConfig) -> None:
        """Run."""

    assert isinstance(call(entry, ["--steps", "0"]).exception, CommandError)


def test_a_bug_keeps_its_traceback() -> None:
    def entry(config: RunConfig) -> None:
        """Run."""
        raise RuntimeError("shapes differ")

    assert isinstance(call(entry, []).exception, RuntimeError)


@pytest.mark.parametrize("command", [["train", "pretrain"], ["train", "fit"], ["data", "build", "emoji"]])
def test_heavy_commands_list_their_options(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0, result.output
    assert "--out" in result.stdout and "--art-cache" in result.stdout


# --- odds and ends


def test_describe() -> None:
    assert describe({"detail": "Too long", "code": "video_too_long"}) == "Too long (video_too_long)"
    assert describe({"title": "HTTP 502 Bad Gateway"}) == "HTTP 502 Bad Gateway"


def test_right_share() -> None:
    def answer(*ranked: str) -> dict[str, Any]:
        return {"labels": [{"name": name, "score": 1 - i / 10} for i, name in enumerate(ranked)]}

    assert right_share([(answer("a", "b", "c"), frozenset("ab"))]) == 1.0
    assert right_share([(answer("c", "a", "b"), frozenset("ab"))]) == 0.5
    assert right_share([(answer("b", "a"), frozenset("a")), (answer("a"), frozenset("a"))]) == 0.5


def test_dummy_samples_are_videos(tmp_path: Path) -> None:
    samples = find_samples("dummy", tmp_path)
    assert all(path.stat().st_size > 500 for path, _ in samples.videos)
    assert {name for _, truth in samples.videos for name in truth} < set(samples.labels)


def test_samples_of_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "samples.json").write_text('{"a.mp4": ["dog", "beach"], "b.mp4": ["dog", "spinning"]}')
    (tmp_path / "config.json").write_text(json.dumps({"trained_labels": ["dog", *(f"thing {i}" for i in range(100))]}))
    samples = find_samples(str(tmp_path), tmp_path)
    assert samples.videos[0] == (tmp_path / "samples" / "a.mp4", frozenset({"dog", "beach"}))
    assert samples.labels[:3] == ("beach", "dog", "spinning")
    assert len(samples.labels) == len(set(samples.labels)) == 20
