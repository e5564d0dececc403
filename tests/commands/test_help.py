"""Every command of the command line, found by walking it: help texts, --help without PyTorch, --json."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from support.paths import ROOT
from vidlex.service.cli import app
from vidlex.service.commands.experiments.dataclass_options import ENTRIES

runner = CliRunner()

# Their modules define the options next to code that uses PyTorch.
NEED_TORCH = {"vidlex bench encode", "vidlex bench register", "vidlex bench train"}
HELP_OF_ALL = """
import json, sys
from typer.testing import CliRunner
from vidlex.service.cli import app
found = {}
for name in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, [*name.split()[1:], "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, (name, done.output, done.exception)
    found[name] = [done.stdout, "torch" in sys.modules]
print(json.dumps(found))
"""


def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for word, child in getattr(command, "commands", {}).items():
        yield from walk(child, "vidlex eval suite" if word == "eval-suite" else f"{name} {word}")


COMMANDS = dict(walk(typer.main.get_command(app), "vidlex"))
LEAVES = [name for name, command in COMMANDS.items() if not getattr(command, "commands", {})]


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[str, bool]]:
    """The help of each command, and whether PyTorch was imported by then."""
    names = sorted(COMMANDS, key=lambda name: name in NEED_TORCH)
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "80"}
    command = [sys.executable, "-c", HELP_OF_ALL, json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[str, bool]] = json.loads(done.stdout)
    return found


def test_all_commands_are_found() -> None:
    assert len(LEAVES) > 40
    assert set(ENTRIES) <= set(LEAVES)
    assert {"vidlex train fit", "vidlex eval suite", "vidlex data build tao", "vidlex labels apply"} <= set(LEAVES)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_has_help(name: str, helps: dict[str, tuple[str, bool]]) -> None:
    if name in ENTRIES:
        options = tyro_options(helps[name][0])
        assert len(options) > 3
    else:
        options = {parameter.name: parameter.help for parameter in COMMANDS[name].params}
    assert not [option for option, text in options.items() if not re.search("[A-Za-z]{2}", text or "")]


def tyro_options(text: str) -> dict[str, str]:
    """Option -> help without the default."""
    lines = [line[2:-2] for line in text.splitlines() if line.startswith("│")]
    entries = re.split(r"^(?=-)", "\n".join(lines), flags=re.MULTILINE)[1:]
    found = {}
    for entry in entries:
        option, _, rest = re.sub(r" {2,}|\n", "\0", entry, count=1).partition("\0")
        found[option] = re.sub(r"\((default|required|optional|repeatable).*\)", "", " ".join(rest.split()))
    return found


def test_the_help_of_an_entry_is_parsed() -> None:
    text = "│ --json                Print JSON. (default: False) │\n"
    text += "│ --seed-of-numbers INT                              │\n"
    text += "│                       (default: 3)                 │\n"
    found = {option: help_text.strip() for option, help_text in tyro_options(text).items()}
    assert found == {"--json": "Print JSON.", "--seed-of-numbers INT": ""}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_option_of_an_entry_shows_its_default(name: str, helps: dict[str, tuple[str, bool]]) -> None:
    text = helps[name][0].replace("help message and exit", "(default)")
    entries = re.split(r"^(?=│ -)", text, flags=re.MULTILINE)[1:]
    assert not [entry for entry in entries if not re.search(r"\((default|required|optional|repeatable)", entry)]


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - NEED_TORCH))
def test_help_does_not_import_torch(name: str, helps: dict[str, tuple[str, bool]]) -> None:
    assert helps[name][1] is False


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_a_json_option(name: str, helps: dict[str, tuple[str, bool]]) -> None:
    assert "--json" in helps[name][0]


def test_options_of_training_keep_their_names(helps: dict[str, tuple[str, bool]]) -> None:
    fit = helps["vidlex train fit"][0]
    for flag in ("--seed INT", "--label-seed INT", "--video-num-frames INT", "--baseline-templates", "--no-bf16"):
        assert flag in fit, flag
    assert "--label.seed" not in fit
    for title in ("the paper's options", "run options", "beyond the paper options", "baseline options"):
        assert f"─ {title} ─" in fit, title


def test_documented_commands_and_options_exist(helps: dict[str, tuple[str, bool]]) -> None:
    """Of all code blocks. Those that need a model hub, a GPU, containers or hours are not run by other tests."""
    wrong, num_commands = [], 0
    for path in ROOT.glob("**/*.md"):
        if ".venv" in path.parts:
            continue
        for block in re.findall(r"^```bash\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            lines = [line for line in block.replace("\\\n", " ").splitlines() if not line.startswith("kubectl")]
            for words in re.findall(r"(?:^|[ (])(vidlex [^#\n|)]*)", "\n".join(lines), re.MULTILINE):
                num_commands += 1
                name = next((name for name in sorted(COMMANDS, key=len, reverse=True) if words.startswith(name)), "")
                known = set(re.findall(r"--[a-z0-9-]+", helps[name][0] if name in ENTRIES else ""))
                known |= {
                    option for parameter in COMMANDS[name].params for option in parameter.opts if name not in ENTRIES
                }
                unknown = set(re.findall(r"--[a-z0-9-]+", words)) - known
                if name == "vidlex" or unknown:
                    wrong.append(f"{path}: {words} {sorted(unknown)}")
    assert num_commands > 40
    assert not wrong, "\n".join(wrong)


def test_documented_targets_exist() -> None:
    targets = set(
        re.findall(r"^([a-z-]+)(?: [a-z-]+)*:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for path in ROOT.glob("*/README.md"):
        named = re.findall(r"^make ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets | {"setup", "setup-dev"}, path
