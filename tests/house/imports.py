"""The imports of the code, parsed and not run; those inside functions and under TYPE_CHECKING count."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from house.arrows import ARROWS
from support.paths import ROOT

PACKAGE = "vidlex"
TOPS = ("service", "model", "migrations")


@dataclass(frozen=True)
class Import:
    source: str  # our module
    target: str  # our module, or a third-party name
    names: tuple[str, ...]
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


@cache
def modules() -> dict[str, Path]:
    found = {}
    for top in TOPS:
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for name, path in modules().items() for found in imports_of(name, tree(path)))


def imports_of(source: str, code: ast.Module) -> Iterator[Import]:
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(source, short(alias.name), (), node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: relative import; name the file in full"
            assert node.module is not None
            module = short(node.module)
            names = tuple(alias.name for alias in node.names)
            submodules = [name for name in names if f"{module}.{name}" in modules()]
            for name in submodules:
                yield Import(source, f"{module}.{name}", (), node.lineno)
            if len(submodules) < len(names):
                yield Import(source, module, tuple(n for n in names if n not in submodules), node.lineno)


def short(name: str) -> str:
    # "service.app" for "vidlex.service.app"
    return name.removeprefix(f"{PACKAGE}.")


def below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def room(module: str) -> str | None:
    return max((r for r in ARROWS if below(module, r)), key=len, default=None)


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in TOPS
