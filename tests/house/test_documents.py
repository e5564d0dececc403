"""The README tells the truth: every setting, route and command is named, and the blocks marked `run` do run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.main

from support.live import live_service
from support.paths import ROOT
from vidlex.service.cli import app
from vidlex.service.commands.bench import benchmarks
from vidlex.service.commands.sample_videos import write_colour_video
from vidlex.service.settings import ENV_PREFIX, Settings, unknown_variables

README = (ROOT / "README.md").read_text(encoding="utf-8")
DEFAULT_URL = "http://127.0.0.1:8000"
RUNNABLE = re.compile(r"^<!-- run -->\n```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE_ROW = re.compile(r"^\| `(?P<name>VIDLEX_\w+)` \| (?P<default>.*?) \|", re.MULTILINE)

BLOCKS = [(match["language"], match["code"]) for match in RUNNABLE.finditer(README)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(tmp_path_factory.mktemp("readme") / "data") as address:
        yield address


def test_every_setting_is_in_the_table_with_its_default() -> None:
    table = {match["name"]: match["default"] for match in TABLE_ROW.finditer(README)}
    for name, field in Settings.model_fields.items():
        variable = ENV_PREFIX + name.upper()
        assert variable in table, f"{variable} is not documented"
        if field.default_factory is None and field.default is not None:
            assert table[variable] == f"`{field.default}`", variable


def test_every_variable_of_the_readme_exists() -> None:
    named = dict.fromkeys(re.findall(r"VIDLEX_[A-Z_]+", README), "x")
    assert unknown_variables(named) == []


def test_every_route_is_named(url: str) -> None:
    paths = httpx.get(f"{url}/openapi.json", timeout=60, trust_env=False).json()["paths"]
    assert len(paths) >= 6
    for path, methods in paths.items():
        assert f"{path}`" in README, f"{path} is not documented"
        for method in methods:
            assert method.upper() in README


def test_every_command_is_named() -> None:
    """But for the single benchmarks, which `vidlex bench --list` names."""
    for command in commands(typer.main.get_command(app), "vidlex"):
        if command.removeprefix("vidlex bench ") not in benchmarks():
            assert command in README, f"`{command}` is not documented"


def commands(command: Any, name: str) -> Iterator[str]:
    children = getattr(command, "commands", None)
    if children is None:
        yield name
        return
    for word, child in children.items():
        if not child.hidden:
            yield from commands(child, f"{name} {word}")


def test_links_inside_the_readme_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for anchor in re.findall(r"\]\(#([\w-]+)\)", README):
        assert anchor in headings
    for path in re.findall(r"`((?:service|model|migrations|tests)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path


def test_there_are_blocks_to_run() -> None:
    assert [language for language, _ in BLOCKS] == ["bash", "python", "bash"]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_block_runs(number: int, url: str, tmp_path: Path) -> None:
    language, code = BLOCKS[number]
    write_colour_video(tmp_path / "clip.mp4", (255, 0, 0))
    (tmp_path / ".curlrc").write_text("fail-with-body\nnoproxy = *\n")  # an HTTP error must fail the block
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CURL_HOME": str(tmp_path),
        "VIDLEX_URL": url,
        "NO_PROXY": "*",
    }
    command = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    done = subprocess.run(
        [*command, code.replace(DEFAULT_URL, url)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "red" in done.stdout
