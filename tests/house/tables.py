"""Tables of the documents that are generated from the code. `make docs` writes them, a test compares them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer.main

from support.paths import ROOT
from vidlex.service.app import create_app
from vidlex.service.cli import app as command_line
from vidlex.service.http.guard import PUBLIC_PATHS, required_scope
from vidlex.service.http.openapi.errors import ERRORS
from vidlex.service.metrics import Metrics
from vidlex.service.runtime.gauges import register_gauges
from vidlex.service.settings import ENV_PREFIX, Settings, load_settings

DOCUMENTS = ("README.md", "service/README.md", "model/README.md", "docker/README.md", "tests/README.md")
REGION = re.compile(r"<!-- generated: (?P<name>\w+) -->\n.*?<!-- end -->", re.DOTALL)
_METHODS = ("get", "post", "put", "patch", "delete")


def settings_table() -> str:
    return _table(("variable", "default", "meaning"), map(_setting, Settings.model_fields))


def _setting(name: str) -> tuple[str, str, str]:
    field = Settings.model_fields[name]
    assert field.description, f"{name} has no description"
    if field.default_factory is not None:
        default = {"data_dir": "`~/.local/share/vidlex`", "decode_workers": "cores, at most 8"}[name]
    else:
        default = "none" if field.default in (None, ()) else f"`{field.default}`"
    return f"`{ENV_PREFIX}{name.upper()}`", default, field.description.removesuffix("; default: cores, at most 8")


def routes_table() -> str:
    paths: dict[str, Any] = create_app(load_settings(traces="off")).openapi()["paths"]
    rows = [
        (f"`{method.upper()} {path}`", operation["summary"], _scope(method, path))
        for path, item in paths.items()
        for method, operation in item.items()
        if method in _METHODS
    ]
    return _table(("request", "what it does", "key"), rows)


def _scope(method: str, path: str) -> str:
    return "none" if path in PUBLIC_PATHS else required_scope(method.upper(), path)


def errors_table() -> str:
    errors = {error for operation in ERRORS.values() for error in operation}
    rows = sorted({(error.status, error.code, error.title) for error in errors})
    return _table(("status", "`code`", "meaning"), ((str(s), f"`{code}`", title) for s, code, title in rows))


def metrics_table() -> str:
    metrics = Metrics()
    register_gauges(metrics, lambda: None, "default")
    label_names = {metric._name: metric._labelnames for metric in vars(metrics).values() if hasattr(metric, "_name")}
    rows = []
    for family in metrics.registry.collect():
        if family.name.startswith("vidlex_"):
            labels = label_names.get(family.name, ())
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append((f"`{name}`", family.type, ", ".join(labels), family.documentation))
    return _table(("metric", "type", "labels", "meaning"), sorted(rows))


def commands_table() -> str:
    return _table(("command", "what it does"), _commands(typer.main.get_command(command_line), "vidlex"))


def _commands(command: Any, name: str) -> Iterator[tuple[str, str]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield f"`{name}`", (command.help or "").strip().partition("\n")[0]
        return
    for word, child in children.items():
        if not child.hidden:
            yield from _commands(child, f"{name} {word}")


TABLES: dict[str, Callable[[], str]] = {
    "commands": commands_table,
    "errors": errors_table,
    "metrics": metrics_table,
    "routes": routes_table,
    "settings": settings_table,
}


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def generated(text: str) -> str:
    """``text`` with its regions ``<!-- generated: NAME --> ... <!-- end -->`` filled from the code."""

    def fill(region: re.Match[str]) -> str:
        name = region["name"]
        return f"<!-- generated: {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return REGION.sub(fill, text)


def write() -> None:
    from house.diagram import draw

    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(generated(path.read_text(encoding="utf-8")), encoding="utf-8")
    Path(ROOT / "service" / "pictures" / "structure.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    write()
