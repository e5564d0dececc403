"""The structure of the code: allowed imports, no circles, length of files. The code is parsed, not run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from house.arrows import ARROWS
from house.folders import LARGE_FOLDERS
from house.forbidden import DIRECTLY_FORBIDDEN, TRANSITIVELY_FORBIDDEN
from house.imports import PACKAGE, TOPS, below, imports, imports_of, is_ours, modules, room, tree
from support.paths import ROOT

MAX_LINES = 400
MAX_FILES = 12  # of a folder that LARGE_FOLDERS does not name
WRITTEN_BY_HAND = (".py", ".js", ".css", ".html")

PICKLES = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
UNSAFE_CALLS = ("torch.load", "torch.save", "torch.hub.load", "pandas.read_pickle")
# Reads tensors of a pickle whose digest is known, once, and writes safetensors.
CONVERSION = ("model.weights.tower", "torch.load(path, map_location='cpu', weights_only=True)")


def test_the_modules_are_found() -> None:
    assert len(modules()) > 200
    assert len(imports()) > 1000


def test_everything_is_imported_by_the_name_it_is_installed_under() -> None:
    """`import service` works only in a checkout, and would load a module twice."""
    wrong = []
    for path in (*modules().values(), *(ROOT / "tests").rglob("*.py")):
        for node in ast.walk(tree(path)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path}:{node.lineno}: {name}" for name in names if name and name.partition(".")[0] in TOPS]
    assert not wrong, "\n".join(wrong)


def test_every_file_belongs_to_a_room() -> None:
    packages = {"service", "service.labels", "model"}
    missing = [name for name in modules() if room(name) is None and name not in packages]
    assert not missing, f"add them to ARROWS: {missing}"


def test_rooms_import_only_allowed_rooms() -> None:
    wrong = []
    for found in imports():
        here, there = room(found.source), room(found.target)
        if not is_ours(found.target) or here is None or here == there:
            continue
        if not any(below(found.target, allowed) for allowed in ARROWS[here]):
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_no_circles() -> None:
    graph = {name: {i.target for i in imports() if i.source == name and i.target in modules()} for name in modules()}
    assert find_circle(graph) is None, " -> ".join(find_circle(graph) or ())


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
    """As imported by Python, so third-party packages count too."""
    names = sorted(f"{PACKAGE}.{name}" for name in modules() if below(name, "service.labels"))
    code = f"import sys, {', '.join(names)}\nprint(*{{'torch', 'fastapi', 'vidlex.model'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_things_are_imported_from_the_file_that_defines_them() -> None:
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    wrong = [str(found) for found in imports() if found.target in packages and found.names]
    for found in imports():
        if found.target in modules() and found.target not in packages:
            defined = definitions(tree(modules()[found.target]))
            wrong += [f"{found}: {name} is not defined there" for name in found.names if name not in defined]
    assert not wrong, "\n".join(wrong)


def test_package_files_hold_no_code() -> None:
    full = [name for name, path in modules().items() if path.name == "__init__.py" and imports_or_code(tree(path))]
    assert not full, f"an __init__.py holds at most a docstring: {full}"


def test_no_file_is_long() -> None:
    files = [path for top in (*TOPS, "tests") for path in (ROOT / top).rglob("*") if path.suffix in WRITTEN_BY_HAND]
    files = [path for path in files if not path.is_relative_to(ROOT / "service/web/vendor")]
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    long = [f"{p.relative_to(ROOT)}: {n} lines" for p, n in lengths.items() if n > MAX_LINES]
    assert not long, "\n".join(long)


def test_large_folders_have_one_subject() -> None:
    """LARGE_FOLDERS names the subject of each folder that has more than MAX_FILES modules."""
    sizes: dict[str, int] = {}
    for path in [*modules().values(), *(ROOT / "tests").rglob("*.py")]:
        if path.name != "__init__.py":
            folder = str(path.parent.relative_to(ROOT))
            sizes[folder] = sizes.get(folder, 0) + 1
    assert {folder for folder, size in sizes.items() if size > MAX_FILES} == set(LARGE_FOLDERS), sizes


def test_routes_hold_routers_and_their_views() -> None:
    """A view turns a result of the domain into a schema, and knows nothing of requests."""
    for name, path in modules().items():
        if below(name, "service.routes") and path.name != "__init__.py":
            imported = {found.target.partition(".")[0] for found in imports() if found.source == name}
            if name.endswith("_views"):
                assert not imported & {"fastapi", "starlette"}, name
            else:
                assert "router" in definitions(tree(path)), name


def test_nothing_is_pickled() -> None:
    wrong = [str(found) for found in imports() if found.target.partition(".")[0] in PICKLES]
    for name, path in modules().items():
        calls = unsafe_calls(tree(path))
        wrong += [f"{name}:{line}: {call}" for line, call in calls if (name, call) != CONVERSION]
    assert not wrong, "\n".join(wrong)


def test_safetensors_are_written_in_one_place() -> None:
    """``save_file`` writes 0600 under any umask; ``save_tensors`` writes files that the service's user can read."""
    wrong = [str(i) for i in imports() if i.target == "safetensors.torch" and "save_file" in i.names]
    assert len(wrong) == 1 and wrong[0].startswith("model.files"), wrong


def definitions(code: ast.Module) -> set[str]:
    """Names that a module binds at its top level, without imports."""
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


def find_circle(graph: dict[str, set[str]]) -> list[str] | None:
    """A closed path, found by depth-first search."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return None
        for following in sorted(graph.get(name, ())):
            circle = visit(following, [*path, name])
            if circle:
                return circle
        finished.add(name)
        return None

    for start in sorted(graph):
        circle = visit(start, [])
        if circle:
            return circle
    return None


def test_the_checks_detect_violations() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
    deferred = ast.parse("def f():\n    from vidlex.model.types import FrameBatch\n    import torch.nn\n")
    assert [i.target for i in imports_of("service.labels.x", deferred)] == ["model.types", "torch.nn"]
    assert room("model.video.encoder") == "model.video" and room("service") is None
    assert list(unsafe_calls(ast.parse("torch.load(path)"))) == [(1, "torch.load(path)")]
    assert list(unsafe_calls(ast.parse("np.load(path, allow_pickle=True)")))
    assert not list(unsafe_calls(ast.parse("json.load(file)")))
    assert imports_or_code(ast.parse('"""Doc."""\nx = 1')) and not imports_or_code(ast.parse('"""Doc."""'))
    assert definitions(ast.parse("from a import b\nc: int = 1\nclass D: ...")) == {"c", "D"}
