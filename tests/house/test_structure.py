"""The house rules, as data: who may import whom, what a room must not pull in, how long a file may be.

All imports count, those inside functions and under TYPE_CHECKING too; the code is read, never run.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from arrows import ARROWS, DIRECTLY_FORBIDDEN, TRANSITIVELY_FORBIDDEN

from support.paths import ROOT

PACKAGE = "vidlex"
TOPS = ("service", "model", "migrations")
MAX_LINES = 400
WRITTEN_BY_HAND = (".py", ".js", ".css", ".html")

PICKLES = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
UNSAFE_CALLS = ("torch.load", "torch.save", "torch.hub.load", "pandas.read_pickle")


@dataclass(frozen=True)
class Import:
    source: str
    """The importing module of ours."""
    target: str
    """What is imported: a module of ours, or the dotted name of something from outside."""
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
    """A module of ours without the package in front: "service.app" for "vidlex.service.app"."""
    return name.removeprefix(f"{PACKAGE}.")


def below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def room(module: str) -> str | None:
    return max((r for r in ARROWS if below(module, r)), key=len, default=None)


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in TOPS


def test_the_modules_are_found() -> None:
    assert len(modules()) > 200
    assert len(imports()) > 1000


def test_everything_is_imported_by_the_name_it_is_installed_under() -> None:
    """`import service` works in a checkout and nowhere else; it would load a module a second time."""
    wrong = []
    for path in (*modules().values(), *(ROOT / "tests").rglob("*.py")):
        for node in ast.walk(tree(path)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path}:{node.lineno}: {name}" for name in names if name and name.partition(".")[0] in TOPS]
    assert not wrong, "\n".join(wrong)


def test_every_file_belongs_to_a_room() -> None:
    faces = {"service", "service.labels", "model"}
    homeless = [name for name in modules() if room(name) is None and name not in faces]
    assert not homeless, f"add them to ARROWS: {homeless}"


def test_no_arrow_but_the_allowed_ones() -> None:
    wrong = []
    for found in imports():
        here, there = room(found.source), room(found.target)
        if not is_ours(found.target) or here is None or here == there:
            continue
        if not any(below(found.target, allowed) for allowed in ARROWS[here]):
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_no_rings() -> None:
    graph = {name: {i.target for i in imports() if i.source == name and i.target in modules()} for name in modules()}
    assert find_ring(graph) is None, " -> ".join(find_ring(graph) or ())


@pytest.mark.parametrize("place", DIRECTLY_FORBIDDEN)
def test_a_room_does_not_import(place: str) -> None:
    wrong = [
        str(found)
        for found in imports()
        if below(found.source, place) and any(below(found.target, banned) for banned in DIRECTLY_FORBIDDEN[place])
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("place", TRANSITIVELY_FORBIDDEN)
def test_a_room_does_not_pull_in(place: str) -> None:
    start = {name for name in modules() if below(name, place)}
    assert start, f"{place} has moved; so must its rule"
    reached, todo = set(start), list(start)
    while todo:
        source = todo.pop()
        for found in imports():
            if found.source == source:
                for banned in TRANSITIVELY_FORBIDDEN[place]:
                    assert not below(found.target, banned), f"{place} pulls in {banned}: {found}"
                if found.target in modules() and found.target not in reached:
                    reached.add(found.target)
                    todo.append(found.target)


def test_the_label_room_runs_without_torch_and_fastapi() -> None:
    """The same once more as Python sees it: what third-party packages bring along counts too."""
    names = sorted(f"{PACKAGE}.{name}" for name in modules() if below(name, "service.labels"))
    code = f"import sys, {', '.join(names)}\nprint(*{{'torch', 'fastapi', 'vidlex.model'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_things_are_imported_from_the_file_that_defines_them() -> None:
    faces = {name for name, path in modules().items() if path.name == "__init__.py"}
    wrong = [str(found) for found in imports() if found.target in faces and found.names]
    for found in imports():
        if found.target in modules() and found.target not in faces:
            defined = definitions(tree(modules()[found.target]))
            wrong += [f"{found}: {name} is not defined there" for name in found.names if name not in defined]
    assert not wrong, "\n".join(wrong)


def test_faces_are_empty() -> None:
    full = [name for name, path in modules().items() if path.name == "__init__.py" and imports_or_code(tree(path))]
    assert not full, f"an __init__.py holds at most a docstring: {full}"


def test_no_file_is_long() -> None:
    files = [path for top in (*TOPS, "tests") for path in (ROOT / top).rglob("*") if path.suffix in WRITTEN_BY_HAND]
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    long = [f"{p.relative_to(ROOT)}: {n} lines" for p, n in lengths.items() if n > MAX_LINES]
    assert not long, "\n".join(long)


def test_nothing_is_pickled() -> None:
    wrong = [str(found) for found in imports() if found.target.partition(".")[0] in PICKLES]
    for name, path in modules().items():
        wrong += [f"{name}:{line}: {call}" for line, call in unsafe_calls(tree(path))]
    assert not wrong, "\n".join(wrong)


def definitions(code: ast.Module) -> set[str]:
    """Names that a module binds itself at its top level, its imports left out."""
    found: set[str] = set()
    for node in ast.walk(code):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def imports_or_code(code: ast.Module) -> bool:
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in code.body)


def unsafe_calls(code: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(code):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) in UNSAFE_CALLS or any(k.arg == "allow_pickle" for k in node.keywords):
            yield node.lineno, ast.unparse(node)


def find_ring(graph: dict[str, set[str]]) -> list[str] | None:
    """A path that comes back to where it began, by depth-first search."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return None
        for following in sorted(graph.get(name, ())):
            ring = visit(following, [*path, name])
            if ring:
                return ring
        finished.add(name)
        return None

    for start in sorted(graph):
        ring = visit(start, [])
        if ring:
            return ring
    return None


def test_the_rules_can_fail() -> None:
    """Each finder finds what it looks for."""
    assert find_ring({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert find_ring({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
    deferred = ast.parse("def f():\n    from vidlex.model.types import FrameBatch\n    import torch.nn\n")
    assert [i.target for i in imports_of("service.labels.x", deferred)] == ["model.types", "torch.nn"]
    assert room("model.video.encoder") == "model.video" and room("service") is None
    assert list(unsafe_calls(ast.parse("torch.load(path)"))) == [(1, "torch.load(path)")]
    assert list(unsafe_calls(ast.parse("np.load(path, allow_pickle=True)")))
    assert not list(unsafe_calls(ast.parse("json.load(file)")))
    assert imports_or_code(ast.parse('"""Doc."""\nx = 1')) and not imports_or_code(ast.parse('"""Doc."""'))
    assert definitions(ast.parse("from a import b\nc: int = 1\nclass D: ...")) == {"c", "D"}
