"""How commands speak: tables for people, JSON for programs, one clear line for an error, documented exit codes.

| exit code | meaning                                                                     |
| 0         | done                                                                        |
| 1         | it could not be done (refused by the service, a file that cannot be read)   |
| 2         | the command line is wrong                                                   |
| 3         | no service answers at the address                                           |
| 130       | stopped with Ctrl-C                                                         |

Results go to stdout; progress and errors to stderr, so that a pipe carries results only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text
from typer.core import TyperGroup

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]

_as_json: ContextVar[bool] = ContextVar("vidlex_as_json", default=False)


class CommandError(Exception):
    """Ends a command with one line on stderr. ``problem`` is the service's problem document, if it sent one."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILED, problem: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.problem = problem

    def document(self) -> dict[str, Any]:
        return {"error": self.problem or {"detail": str(self)}, "exit_code": self.exit_code}


class Root(TyperGroup):
    """The outermost command: no traceback reaches a person for something that they can mend."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """`eval suite` is a command of its own beside `eval MANIFEST`."""
        if args[:2] == ["eval", "suite"]:
            args = ["eval-suite", *args[2:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CommandError as error:
            report(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader (head, say) has gone; what Python still holds must not complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


def report(error: CommandError) -> None:
    if _as_json.get():
        print(json.dumps(error.document(), ensure_ascii=False), file=sys.stderr)
    else:
        stderr().print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)


def use_json(flag: bool) -> bool:
    """Remember for this command whether a program reads; errors follow it too. Returns ``flag``."""
    _as_json.set(flag)
    return flag


def print_json(value: Any) -> None:
    """One JSON document on one line of stdout, at once (a pipe sees each result when it is there)."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def stdout() -> Console:
    return Console(highlight=False)


def stderr() -> Console:
    return Console(stderr=True, highlight=False)


class _CountColumn(MofNCompleteColumn):
    """3/20, and nothing for work whose amount is unknown."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text()


@contextmanager
def progress(description: str, total: float | None) -> Iterator[Progress]:
    """A progress bar on stderr with one task (id 0), only where a person watches a terminal.

    Stop it before printing and start it again after: it leaves no trace on the screen.
    """
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        _CountColumn(),
        TimeElapsedColumn(),
        console=stderr(),
        transient=True,
        redirect_stdout=False,  # rich would send results to stderr, where this bar lives
        redirect_stderr=False,
        disable=_as_json.get() or not sys.stderr.isatty(),
    )
    with bar:
        bar.add_task(description, total=total)
        yield bar
