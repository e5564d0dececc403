"""Options from the parameters of functions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner, Result

from vidlex.service.commands.experiments import dataclass_options
from vidlex.service.commands.experiments.dataclass_options import add_entry, is_user_error
from vidlex.service.commands.output import CommandError

CALLS: list[Any] = []


@dataclass(frozen=True)
class RunConfig:
    steps: int = 3
    """Number of steps."""
    rate: float = 0.5
    """Learning rate."""
    kind: Literal["a", "b"] = "a"
    """Kind of run."""
    fast: bool = True
    """Whether it is fast."""
    half: bool | None = None
    """Whether it uses half precision; by default what is faster."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be positive")


@dataclass(frozen=True)
class PartConfig:
    steps: int = 7
    """Number of steps
    of the ``part``."""


OPTION_GROUPS = {RunConfig: {"speed": ("fast", "half")}}


def run(
    config: RunConfig,
    part: PartConfig,
    *,
    out: Path,
    lists: tuple[Path, ...] = (),
    limit: int | None = None,
    resume: bool = False,
) -> dict[str, int]:
    """Run.

    Args:
        out: The folder.
        lists: Lists.
        limit: A limit.
        resume: Whether to resume.
    """
    CALLS.append((config, part, out, lists, limit, resume))
    if limit == 13:
        raise RuntimeError("shapes differ")
    return {"answer": 42}


@pytest.fixture(autouse=True)
def _no_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dataclass_options, "ENTRIES", {})
    CALLS.clear()
    yield


def call(*arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    add_entry(app, "test run", f"{__name__}:run", help="Run.")
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["run", *arguments], env={"COLUMNS": "80"})


def test_dataclass_fields_become_options() -> None:
    arguments = ["--steps", "5", "--kind", "b", "--lists", "x", "--lists", "y", "--no-fast", "--part-steps", "1"]
    result = call(*arguments, "--resume", "--out", "runs/x", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"answer": 42}
    config = RunConfig(steps=5, kind="b", fast=False)
    assert [(config, PartConfig(steps=1), Path("runs/x"), (Path("x"), Path("y")), None, True)] == CALLS


def test_defaults_are_those_of_the_code() -> None:
    result = call("--out", "x")
    assert (result.exit_code, result.stdout) == (0, "answer: 42\n")
    assert [(RunConfig(), PartConfig(), Path("x"), (), None, False)] == CALLS


def test_boolean_without_default_has_three_values() -> None:
    for flag in ([], ["--half"], ["--no-half"]):
        assert call("--out", "x", *flag).exit_code == 0
    assert [config.half for config, *_ in CALLS] == [None, True, False]


@pytest.mark.parametrize(
    "arguments", [[], ["--out", "x", "--kind", "c"], ["--out", "x", "--steps", "many"], ["--out", "x", "--stepz", "1"]]
)
def test_invalid_options_are_usage_errors(arguments: list[str]) -> None:
    result = call(*arguments)
    assert (result.exit_code, result.stdout, CALLS) == (2, "", [])
    assert "test run" in result.stderr


def test_invalid_setting_is_a_command_error() -> None:
    assert isinstance(call("--out", "x", "--steps", "0").exception, CommandError)


def test_unexpected_error_keeps_its_traceback() -> None:
    assert isinstance(call("--out", "x", "--limit", "13").exception, RuntimeError)


def test_help_has_groups_prefixes_and_plain_texts() -> None:
    text = call("--help").stdout
    assert "Number of steps of the `part`. (default: 7)" in text
    assert "─ speed options ─" in text and "─ part options ─" in text
    assert "--part-steps INT" in text and "--no-half" in text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), True),
        (PermissionError(13, "Permission denied", "run.json"), True),
        (FloatingPointError("joint: the loss is nan at step 3"), True),
        (OSError("without a reason of the system"), False),
        (ZeroDivisionError("division by zero"), False),
        (TypeError("a mistake of the program"), False),
    ],
)
def test_errors_whose_message_suffices(error: Exception, expected: bool) -> None:
    assert is_user_error(error) == expected
