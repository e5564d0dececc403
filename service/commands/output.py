"""Output of commands: results on stdout, progress and errors on stderr, exit codes.

| exit code | meaning                                                          |
| 0         | success                                                          |
| 1         | failure (refused by the service, or a file that cannot be read)  |
| 2         | usage error (command line or setting)                            |
| 3         | service unreachable                                              |
| 130       | interrupted (Ctrl-C)                                             |
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
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

from vidlex.service.commands.extras import missing_extra
from vidlex.service.labels.files import LabelFileError, UnknownFormat

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

_as_json: ContextVar[bool] = ContextVar("vidlex_as_json", default=False)


class CommandError(Exception):
    """Ends a command with one line on stderr. ``problem`` is the problem document of the service, if there is one."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILED, problem: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.problem = problem

    def document(self) -> dict[str, Any]:
        return {"error": self.problem or {"detail": str(self)}, "exit_code": self.exit_code}


class RootGroup(TyperGroup):
    """Reports CommandError, missing extras and interrupts without a traceback."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Dispatch `eval suite` to a separate command, because `eval` takes an argument."""
        if args[:2] == ["eval", "suite"]:
            args = ["eval-suite", *args[2:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        name = self._command_name(ctx)
        try:
            return super().invoke(ctx)
        except CommandError as error:
            print_error(error)
            raise typer.Exit(error.exit_code) from None
        except LabelFileError as error:
            print_error(failure := CommandError(str(error), exit_code=_exit_code_of(error)))
            raise typer.Exit(failure.exit_code) from None
        except ModuleNotFoundError as error:
            missing = missing_extra(error)
            if missing is None:
                raise
            print_error(CommandError(f"{name} needs {missing}"))
            raise typer.Exit(EXIT_FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader closed the pipe. Flushing the buffer at exit must not raise again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None

    def _command_name(self, ctx: Any) -> str:
        """Such as "vidlex labels verify"."""
        words = [ctx.info_name or "vidlex"]
        command: Any = self
        for word in (*getattr(ctx, "_protected_args", ()), *ctx.args):
            command = getattr(command, "commands", {}).get(word)
            if command is None:
                break
            words.append(word)
        return " ".join(words)


def _exit_code_of(error: LabelFileError) -> int:
    return EXIT_USAGE if isinstance(error, UnknownFormat) else EXIT_FAILED


def print_error(error: CommandError) -> None:
    if _as_json.get():
        print(json.dumps(error.document(), ensure_ascii=False), file=sys.stderr)
    else:
        stderr().print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)


def print_warning(text: str) -> None:
    """Print a line on stderr about a result that may be less useful than it looks. JSON results contain it."""
    if not _as_json.get():
        stderr().print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)


def raise_last(failures: Sequence[CommandError]) -> None:
    """Print all failures but the last, and raise the last. Does nothing without failures."""
    for failure in failures[:-1]:
        print_error(failure)
    if failures:
        raise failures[-1]


def use_json(flag: bool) -> bool:
    """Set whether errors are printed as JSON and the progress bar is off. Returns ``flag``."""
    _as_json.set(flag)
    return flag


def print_json(value: Any) -> None:
    """Print one line of JSON to stdout and flush it."""
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def print_text(text: str, *, markup: bool = True) -> None:
    """Print text to stdout without wrapping it at the width of the terminal."""
    stdout().print(text, markup=markup, soft_wrap=True)


def stdout() -> Console:
    return Console(highlight=False)


def stderr() -> Console:
    return Console(stderr=True, highlight=False)


class _CountColumn(MofNCompleteColumn):
    """ "3/20"; empty if the total is unknown."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None else Text()


@contextmanager
def progress(description: str, total: float | None) -> Iterator[Progress]:
    """A progress bar on stderr with one task (id 0), shown only on a terminal.

    Stop it before printing and start it again afterwards.
    """
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        _CountColumn(),
        TimeElapsedColumn(),
        console=stderr(),
        transient=True,
        redirect_stdout=False,  # rich would redirect results to stderr, where the bar is
        redirect_stderr=False,
        disable=_as_json.get() or not sys.stderr.isatty(),
    )
    with bar:
        bar.add_task(description, total=total)
        yield bar
