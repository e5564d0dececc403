"""Command-line options made from a function's signature: dataclass parameters are spread into one option a field.

The fields of a parameter named ``config`` or ``options`` keep their names (``--seed``); those of another carry its
(``label: LabelEncoderConfig`` gives ``--label-num-prefixes``), because two dataclasses may share a field's name.
So a setting of training exists once, in its dataclass, and the command line cannot fall behind it. The function's
module is imported only when the command runs (or is asked for its help), because it brings torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import typer

from vidlex.service.commands.output import CommandError, print_json, progress, stdout, use_json

PASS_THROUGH: dict[str, Any] = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
    "allow_interspersed_args": False,
}


@runtime_checkable
class Shown(Protocol):
    """A result that knows how it looks, to people (by rich) and to programs."""

    def document(self) -> Mapping[str, Any]: ...

    def __rich__(self) -> Any: ...


def run_entry(
    ctx: typer.Context, target: str, *, defaults: Mapping[str, Any] | None = None, name: str | None = None
) -> None:
    """Run ``target`` ("package.module:function") with the options left in ``ctx``."""
    module_name, _, function_name = target.partition(":")
    function = getattr(importlib.import_module(module_name), function_name)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=_help_of(function))(as_command(function, defaults or {}))
    app(args=list(ctx.args), prog_name=ctx.command_path if name is None else name, standalone_mode=False)


def as_command(function: Callable[..., Any], defaults: Mapping[str, Any]) -> Callable[..., None]:
    """A function that typer understands, with a flat signature; it rebuilds the dataclasses and calls ``function``."""
    spread: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    hints = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        annotation = hints[parameter.name]
        if _is_dataclass(annotation):
            spread[parameter.name] = annotation
            parameters += _field_parameters(annotation, _prefix(parameter.name))
        elif _option_type(annotation) is not None:
            default = defaults.get(parameter.name, parameter.default)
            parameters.append(_parameter(parameter.name, _option_type(annotation), default))
    parameters.append(
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_JSON_ANNOTATION)
    )
    names = [parameter.name for parameter in parameters]
    if len(set(names)) != len(names):
        raise TypeError(f"{function.__qualname__}: two parameters share a name: {sorted(names)}")

    def command(**values: Any) -> None:
        as_json = use_json(values.pop("as_json"))
        arguments = {}
        try:
            for parameter_name, kind in spread.items():
                named = {f.name: _prefix(parameter_name) + f.name for f in dataclasses.fields(kind)}
                fields = {field: values.pop(option) for field, option in named.items() if option in values}
                arguments[parameter_name] = kind(**{key: _frozen(value) for key, value in fields.items()})
            with _progress_argument(function) as reporter:
                result = function(**arguments, **values, **reporter)
        except Exception as error:
            if not is_for_people(error):
                raise
            raise CommandError(str(error) or type(error).__name__) from error
        _print_result(result, as_json=as_json)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


_JSON_ANNOTATION = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _prefix(parameter_name: str) -> str:
    return "" if parameter_name in ("config", "options") else f"{parameter_name}_"


def _field_parameters(kind: type[Any], prefix: str) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        option = _option_type(hints[field.name])
        if option is None:
            continue  # a nested structure keeps its default; it has no flat spelling
        default: Any = inspect.Parameter.empty
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append(_parameter(prefix + field.name, option, list(default) if isinstance(default, tuple) else default))
    return found


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    flag = name.replace("_", "-")
    is_switch = annotation in (bool, bool | None)
    option = typer.Option(f"--{flag}/--no-{flag}" if is_switch else f"--{flag}", show_default=True)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
    )


def _option_type(annotation: Any) -> Any:
    """The type to give typer, or None when the annotation has no spelling as one option."""
    if annotation in (int, float, str, bool, Path):
        return annotation
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return annotation
    if origin in (types.UnionType, typing.Union) and len(inner) == 2 and type(None) in inner:
        return annotation if _option_type(next(a for a in inner if a is not type(None))) is not None else None
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis and _option_type(inner[0]) is not None:
        return list[inner[0]]  # type: ignore[valid-type]
    return None


def _is_dataclass(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@contextmanager
def _progress_argument(function: Callable[..., Any]) -> Iterator[dict[str, Callable[[int, int], None]]]:
    """``{"progress": report}`` for a function that takes ``progress(num_done, num_all)``, else nothing."""
    if "progress" not in inspect.signature(function).parameters:
        yield {}
        return
    with progress(function.__name__, total=None) as bar:
        yield {"progress": lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total)}


def is_for_people(error: Exception) -> bool:
    """Settings that do not go together, a missing file, art or weights that cannot be fetched: no traceback helps."""
    return isinstance(error, ValueError | FileNotFoundError) or type(error).__module__.startswith("model.")


def _help_of(function: Callable[..., Any]) -> str:
    return inspect.cleandoc(function.__doc__ or "")


def _print_result(result: Any, *, as_json: bool) -> None:
    """The entry's return value: nothing, a path, figures, or what shows itself."""
    if result is None:
        return
    if isinstance(result, Shown):
        if as_json:
            print_json(result.document())
        else:
            stdout().print(result)
        return
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        result = dataclasses.asdict(result)
    if as_json:
        print_json({"path": str(result)} if isinstance(result, Path) else result)
    elif isinstance(result, Mapping):
        for key, value in result.items():
            stdout().print(f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}", markup=False)
    else:
        stdout().print(str(result), markup=False, soft_wrap=True)
