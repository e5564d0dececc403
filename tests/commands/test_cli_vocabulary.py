"""Bulk import, `vidlex labels diff` and `vidlex labels apply` with a running service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from support.live import live_service
from vidlex.service.cli import app
from vidlex.service.commands.labels import bulk


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(tmp_path_factory.mktemp("vocabulary") / "data") as url:
        yield url


@pytest.fixture
def url(service: str, tmp_path: Path) -> str:
    empty = lines(tmp_path / "empty.jsonl")
    assert vidlex(service, "apply", empty, "--prune").exit_code == 0
    return service


def vidlex(url: str, command: str, *arguments: Any) -> Result:
    words = ["labels", command, *map(str, arguments), "--url", url]
    return CliRunner(env={"VIDLEX_URL": ""}).invoke(app, words, catch_exceptions=False)


def lines(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def exported(url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in vidlex(url, "export").stdout.splitlines()]


def test_apply_makes_labels_equal_to_the_file_and_is_idempotent(url: str, tmp_path: Path) -> None:
    first = [
        {"name": "red panda", "parents": ["animal"]},
        {"name": "animal", "aliases": ["creature"], "threshold": 0.25},
        {"name": "rock"},
    ]
    file = lines(tmp_path / "v.jsonl", *first)
    assert vidlex(url, "diff", file).exit_code == 1
    assert vidlex(url, "apply", file, "--dry-run").exit_code == 0 and exported(url) == []
    assert vidlex(url, "apply", file).stdout.endswith("3 added, 0 changed, 0 removed\n")
    assert sorted(exported(url), key=lambda x: str(x["name"])) == sorted(first, key=lambda x: str(x["name"]))
    for command, expected in (("diff", "no differences\n"), ("apply", "0 added, 0 changed, 0 removed\n")):
        again = vidlex(url, command, file)
        assert (again.exit_code, again.stdout) == (0, expected)

    second = [
        {"name": "Red Panda", "aliases": ["creature"], "parents": ["animal"]},  # the alias moves to another label
        {"name": "animal", "metadata": {"a": 1}},
        {"name": "tree"},
    ]
    file = lines(tmp_path / "v.jsonl", *second)
    shown = [json.loads(line) for line in vidlex(url, "diff", file, "--json").stdout.splitlines()]
    assert {x["name"]: x["change"] for x in shown} == {
        "red panda": "changed",
        "animal": "changed",
        "rock": "removed",
        "tree": "added",
    }
    assert shown[0]["name"] == "animal" and shown[0]["fields"]["threshold"] == {"old": 0.25, "new": None}
    assert "would add 1, change 2, remove 1\n" in vidlex(url, "diff", file).stdout
    assert "would add 1, change 2, remove 0\n" in vidlex(url, "apply", file, "--dry-run").stdout
    unpruned = vidlex(url, "apply", file)
    assert unpruned.exit_code == 0 and "1 labels are not in the file" in unpruned.stdout
    assert vidlex(url, "diff", file).exit_code == 1
    assert vidlex(url, "apply", file, "--prune").exit_code == 0
    assert sorted(exported(url), key=lambda x: str(x["name"])) == sorted(second, key=lambda x: str(x["name"]))
    assert vidlex(url, "diff", file).exit_code == 0


def test_apply_exchanges_parent_and_child(url: str, tmp_path: Path) -> None:
    vidlex(url, "apply", lines(tmp_path / "a.jsonl", {"name": "a"}, {"name": "b", "parents": ["a"]}))
    exchanged = [{"name": "a", "parents": ["b"]}, {"name": "b"}]
    assert vidlex(url, "apply", lines(tmp_path / "b.jsonl", *exchanged)).exit_code == 0
    assert exported(url) == exchanged


def test_file_declares_only_its_columns(url: str, tmp_path: Path) -> None:
    vidlex(url, "apply", lines(tmp_path / "a.jsonl", {"name": "a", "aliases": ["x"], "threshold": 0.5}))
    names = tmp_path / "names.txt"
    names.write_text("A\n")
    assert vidlex(url, "diff", names).exit_code == 1  # the case differs
    names.write_text("a\n")
    assert vidlex(url, "diff", names).exit_code == 0
    table = tmp_path / "t.csv"
    table.write_text("name,threshold\na,\n")
    assert vidlex(url, "apply", table).exit_code == 0
    assert exported(url) == [{"name": "a", "aliases": ["x"]}]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("v.csv", "name,alias\nred,rot\n", "line 1: unknown column 'alias'; known: name, aliases"),
        ("v.jsonl", '{"name": "red", "alias": ["rot"]}\n', "line 1: unknown member 'alias'; known: name, aliases"),
        ("v.json", '[{"name": "red", "tags": []}]', "entry 1: unknown member 'tags'"),
    ],
)
def test_misspelt_fields_are_refused(url: str, tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / name).write_text(text)
    for command in ("import", "apply"):
        refused = vidlex(url, command, tmp_path / name)
        assert refused.exit_code == 1 and problem in refused.stderr
    assert exported(url) == []


def test_answers_of_the_service_can_be_imported(url: str, tmp_path: Path) -> None:
    assert vidlex(url, "add", "red").exit_code == 0
    (tmp_path / "labels.json").write_text(httpx.get(f"{url}/labels", trust_env=False).text)
    assert vidlex(url, "import", tmp_path / "labels.json").exit_code == 0


def test_diff_errors_have_separate_exit_codes(url: str, tmp_path: Path) -> None:
    assert vidlex(url, "diff", tmp_path / "none.jsonl").exit_code == 2
    assert vidlex(url, "diff", lines(tmp_path / "twice.jsonl", {"name": "a"}, {"name": "A"})).exit_code == 2
    assert vidlex("http://127.0.0.1:9", "diff", lines(tmp_path / "a.jsonl")).exit_code == 3
    bad = vidlex(url, "apply", lines(tmp_path / "bad.jsonl", {"name": "a"}, {"name": "b", "parents": ["missing"]}))
    assert bad.exit_code == 1 and [x["name"] for x in exported(url)] == ["a"]


def test_apply_reports_a_failure_among_retries(url: str, tmp_path: Path) -> None:
    vidlex(url, "apply", lines(tmp_path / "a.jsonl", {"name": "a"}, {"name": "b", "parents": ["a"]}))
    wanted = [{"name": "a", "parents": ["b"]}, {"name": "b"}, {"name": "c\u0000"}]
    result = vidlex(url, "apply", lines(tmp_path / "b.jsonl", *wanted))
    assert result.exit_code == 1 and "label_text_invalid" in result.stderr
    assert exported(url) == wanted[:2]


def test_normalised_name_is_not_a_difference(url: str, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"name": "o\ufb03ce  chair"})
    assert vidlex(url, "apply", file).exit_code == 0 and exported(url) == [{"name": "office chair"}]
    assert vidlex(url, "diff", file).exit_code == 0


def test_import_accepts_any_order_in_many_batches(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "FIRST_BATCH", 3)
    monkeypatch.setattr(bulk, "MAX_BATCH_LABELS", 5)
    count = 40
    chain = [{"name": f"label {i}"} | ({"parents": [f"label {i + 1}"]} if i + 1 < count else {}) for i in range(count)]
    file = lines(tmp_path / "chain.jsonl", *chain, {"name": "orphan", "parents": ["missing"]})
    result = vidlex(url, "import", file)
    assert result.exit_code == 1 and "parent_not_found" in result.stderr
    assert result.stdout.startswith(f"{count} added, 0 already existed, 1 failed")
    assert {x["name"]: x.get("parents") for x in exported(url)} == {x["name"]: x.get("parents") for x in chain}
    assert vidlex(url, "import", file).stdout.startswith(f"0 added, {count} already existed, 1 failed")
