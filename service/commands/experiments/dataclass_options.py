"""Commands whose options are the parameters of a function; a dataclass parameter contributes one option per field.

The fields of a parameter named ``config``, ``options`` or ``data`` keep their names (``--seed``); those of other
parameters have its name as a prefix (``label: LabelEncoderConfig`` gives ``--label-num-prefixes``). The help texts are
the docstrings below the fields, and the ``Args`` section of the function.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import shlex
import typing
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import typer

from vidlex.service.commands.extras import require
from vidlex.service.commands.output import CommandError, print_json, stdout, use_json

if typing.TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

_UNPREFIXED = ("config", "options", "data")
_PASS_THROUGH: dict[str, Any] = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
    "allow_interspersed_args": False,
}
ENTRIES: dict[str, str] = {}
"""Of all commands that ``add_entry`` has added: "vidlex train fit" -> "package.module:function"."""
command_line: ContextVar[str] = ContextVar("vidlex_command_line", default="")
"""The running command with its arguments."""


@runtime_checkable
class Printable(Protocol):
    """A result with a form for programs and one for terminals."""

    def document(self) -> Mapping[str, Any]: ...

    def __rich__(self) -> Any: ...


def add_entry(
    app: typer.Typer,
    name: str,
    target: str,
    *,
    help: str,
    word: str = "",
    hidden: bool = False,
    requires: Sequence[str] = (),
    before: Callable[[], None] = lambda: None,
) -> None:
    """Add ``target`` ("package.module:function") as the command ``name`` ("vidlex train fit").

    The module is imported when the command runs, after a check that the modules in ``requires`` are installed, and the
    call of ``before``. ``word`` is the command's name within ``app`` if it is not the last word of ``name``.
    """
    ENTRIES[name] = target

    def command(ctx: typer.Context) -> None:
        use_json("--json" in ctx.args)  # for errors before the options are parsed
        if not {"-h", "--help"} & set(ctx.args):
            require(*requires)
        before()
        run_entry(name, ctx.args)

    app.command(word or name.rsplit(maxsplit=1)[-1], help=help, hidden=hidden, context_settings=_PASS_THROUGH)(command)


def run_entry(name: str, arguments: Sequence[str]) -> None:
    import tyro

    command_line.set(shlex.join([*name.split(), *arguments]))
    try:
        call, as_json = tyro.cli(_entry(name), prog=name, args=arguments, **_parser_options(name))
        use_json(as_json)
        result = call()
    except Exception as error:
        if not is_user_error(error):
            raise
        raise CommandError(str(error) or type(error).__name__) from error
    _print_result(result, as_json=as_json)


def is_user_error(error: Exception) -> bool:
    """Whether the message suffices: invalid settings, missing files, a full disk, weights or artwork that cannot be
    downloaded.
    """
    if isinstance(error, OSError) and error.errno is not None:  # the message has the reason and the file
        return True
    is_expected = isinstance(error, ValueError | FileNotFoundError | FloatingPointError)  # the last: loss is not finite
    return is_expected or type(error).__module__.startswith("vidlex.model.")


def _function(name: str) -> Callable[..., Any]:
    module, _, function = ENTRIES[name].partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _entry(name: str) -> Callable[..., tuple[Callable[[], Any], bool]]:
    """A function with the options of the entry and --json. It returns the call, for after the parsing, and --json."""
    import tyro

    function = _function(name)

    def deferred(*arguments: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(function, *arguments, **named)

    signature = inspect.signature(function)
    hints = typing.get_type_hints(function)
    for parameter in signature.parameters.values():
        name = "" if parameter.name in _UNPREFIXED else parameter.name
        option: Any = tyro.conf.arg(name=name, help_behavior_hint="(optional)" if parameter.default is None else None)
        hints[parameter.name] = Annotated[hints[parameter.name], option]
    deferred.__signature__ = signature  # type: ignore[attr-defined]
    deferred.__annotations__ = hints
    deferred.__doc__ = function.__doc__

    def entry(call: Any, as_json: bool = False) -> tuple[Callable[[], Any], bool]:
        return call, as_json

    json_flag: Any = tyro.conf.arg(name="json", help="Print JSON instead of text.")
    entry.__annotations__ = {
        "call": Annotated[Any, tyro.conf.arg(name="", constructor=deferred)],
        "as_json": Annotated[tyro.conf.FlagCreatePairsOff[bool], json_flag],
    }
    return entry


def _parser_options(name: str) -> dict[str, Any]:
    import tyro

    function = _function(name)
    module = importlib.import_module(function.__module__)
    groups = getattr(module, "OPTION_GROUPS", {})
    prefixes = {
        hint: "" if parameter in _UNPREFIXED else f"{parameter}_"
        for parameter, hint in typing.get_type_hints(function).items()
        if dataclasses.is_dataclass(hint)
    }
    return {
        "description": inspect.cleandoc(function.__doc__ or module.__doc__ or "").split("\n\n")[0].replace("\n", " "),
        "config": (tyro.conf.DisallowNone, tyro.conf.UseAppendAction),  # --x/--no-x for bool | None; repeated flags
        "registry": _registry(prefixes, groups),
    }


class _OptionGroup:
    """The base of types that stand for a titled group of options."""

    fields: tuple[StructFieldSpec, ...]


def _registry(prefixes: Mapping[Any, str], groups: Mapping[Any, Mapping[str, Sequence[str]]]) -> ConstructorRegistry:
    """Names options ``--label-seed`` instead of tyro's ``--label.seed``, and groups those of large dataclasses."""
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec

    registry = ConstructorRegistry()
    is_delegating = False

    @registry.struct_rule
    def flat(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal is_delegating
        if is_delegating:
            return None
        if isinstance(info.type, type) and issubclass(info.type, _OptionGroup):
            return StructConstructorSpec(instantiate=dict, fields=info.type.fields)
        if info.type not in prefixes:
            return None
        is_delegating = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            is_delegating = False
        assert isinstance(spec, StructConstructorSpec)
        named = {field.name: _named(field, prefixes[info.type]) for field in spec.fields}
        if info.type not in groups:
            return dataclasses.replace(spec, fields=tuple(named.values()))
        return _grouped(named, groups[info.type], info.type)

    return registry


def _named(field: StructFieldSpec, prefix: str) -> StructFieldSpec:
    import tyro

    option: Any = tyro.conf.arg(
        name=prefix + field.name, prefix_name=False, help_behavior_hint="(optional)" if field.default is None else None
    )
    annotated: Any = Annotated[field.type, option]
    return dataclasses.replace(field, type=annotated, helptext=lambda: _help_of(field))


def _help_of(field: StructFieldSpec) -> str:
    """On one line, without reStructuredText quotes."""
    text = field.helptext() if callable(field.helptext) else field.helptext
    return " ".join((text or "").replace("``", "`").split())


def _grouped(
    fields: dict[str, StructFieldSpec], groups: Mapping[str, Sequence[str]], kind: type
) -> StructConstructorSpec:
    import tyro
    from tyro.constructors import StructConstructorSpec, StructFieldSpec

    def group(title: str, names: Sequence[str]) -> StructFieldSpec:
        option: Any = tyro.conf.arg(name=title, prefix_name=False)
        group_type = type("OptionGroup", (_OptionGroup,), {"fields": tuple(fields.pop(name) for name in names)})
        return StructFieldSpec(name=title, type=Annotated[group_type, option], default=tyro.MISSING)  # type: ignore[arg-type]

    titled = [group(title, names) for title, names in groups.items()]

    def instantiate(**values: Any) -> Any:
        for title in groups:
            values |= values.pop(title)
        return kind(**values)

    return StructConstructorSpec(instantiate=instantiate, fields=(*fields.values(), *titled))


def _print_result(result: Any, *, as_json: bool) -> None:
    if result is None:
        return
    if isinstance(result, Printable):
        if as_json:
            print_json(result.document())
        else:
            stdout().print(result)
        return
    if as_json:
        print_json({"path": str(result)} if isinstance(result, Path) else result)
    elif isinstance(result, Mapping):
        for key, value in result.items():
            stdout().print(f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}", markup=False)
    else:
        stdout().print(str(result), markup=False, soft_wrap=True)
