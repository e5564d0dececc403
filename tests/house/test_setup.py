"""The set-up of the virtual environment by `make`: installation, no-op and interruption."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from support.paths import ROOT

SCRIPT = ROOT / ".ci" / "setup_venv.py"
PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[\w.]+)(?P<marker> ; .+)?")


class Interrupted(Exception):
    pass


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module, with its temporary files in ``tmp_path``."""
    spec = importlib.util.spec_from_file_location("setup_venv", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    return module


class Recorder:
    """Replaces running commands: creates the files of `python -m venv`, and can be interrupted at a command."""

    def __init__(self, stop_at: str = "") -> None:
        self.stop_at = stop_at
        self.commands: list[str] = []

    def __call__(self, *command: str | Path, log: Path, **_: object) -> None:
        line = " ".join(str(part) for part in command)
        self.commands.append(line)
        if self.stop_at and self.stop_at in line:
            raise Interrupted
        if "-m venv" in line:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.unlink(missing_ok=True)
            python.symlink_to(sys.executable)
            (python.parent.parent / "pyvenv.cfg").touch()


def run(setup: ModuleType, venv: Path, monkeypatch: pytest.MonkeyPatch, *flags: str, stop_at: str = "") -> list[str]:
    recorder = Recorder(stop_at)
    monkeypatch.setattr(setup, "run", recorder)
    monkeypatch.setattr(sys, "argv", ["setup_venv.py", str(venv), *flags])
    try:
        assert setup.main() == 0
    except Interrupted:
        assert stop_at
    return recorder.commands


def test_the_second_time_does_nothing(setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = tmp_path / "a" / "venv"
    first = run(setup, venv, monkeypatch)
    assert [("-m venv" in c, "requirements.lock" in c, "-e" in c.split()) for c in first[:3]] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert run(setup, venv, monkeypatch) == []


def test_an_interrupted_installation_is_repeated(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = tmp_path / "venv"
    run(setup, venv, monkeypatch, stop_at="requirements.lock")
    assert "--clear" in run(setup, venv, monkeypatch)[0]
    assert run(setup, venv, monkeypatch) == []


def test_a_changed_lock_is_installed_into_the_same_environment(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = tmp_path / "venv"
    run(setup, venv, monkeypatch)
    (venv / setup.STAMP).write_text("the hash of an older lock\n")
    commands = run(setup, venv, monkeypatch)
    assert not any("-m venv" in command for command in commands)
    assert any("requirements.lock" in command for command in commands)


def test_a_folder_of_someone_else_is_left_alone(setup: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("data")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "not a virtual environment" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_development_packages_are_installed_on_request(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {flag: {pin.partition("==")[0] for pin in setup.pins(dev=flag)} for flag in (False, True)}
    assert {"pytest", "ruff", "mypy"} <= names[True] - names[False]
    assert {"fastapi", "torch", "setuptools", "accelerate"} <= names[False]
    venv = tmp_path / "venv"
    assert run(setup, venv, monkeypatch)
    assert run(setup, venv, monkeypatch, "--dev")
    assert run(setup, venv, monkeypatch, "--dev") == []
    assert run(setup, venv, monkeypatch) == []  # all requirements are installed


def test_a_failed_stage_ends_with_the_end_of_its_log(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "LOCK", tmp_path / "requirements.lock")
    setup.LOCK.write_text("no-such-package-of-vidlex==1.0\n")
    monkeypatch.setattr(sys, "argv", ["setup_venv.py", str(tmp_path / "venv")])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert setup.main() == 1
    out = capsys.readouterr()
    assert len(out.out.splitlines()) == 2, "one line per stage"
    assert "No matching distribution found for no-such-package-of-vidlex==1.0" in out.err
    assert str(tmp_path / "venv" / "setup.log") in out.err
    assert "no-such-package" in (tmp_path / "venv" / "setup.log").read_text()


def test_the_lock_pins_everything_and_is_what_runs_here() -> None:
    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert len(lines) > 50
    for line in lines:
        pin = PIN.fullmatch(line)
        assert pin, f"not one exact version: {line}"
        if not pin["marker"]:
            assert version(pin["name"]) == pin["version"], (
                "make (or pip install -r requirements.lock) brings it up to date"
            )


@pytest.mark.parametrize("python", ["3.11.0", "3.11.9", "3.12.0", "3.13.0"])
def test_the_lock_is_complete_for_each_python(python: str) -> None:
    """Also for those that do not run here: some packages need more on an older Python."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    names = {normal(pin["name"]) for line in lines if (pin := PIN.fullmatch(line))}
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python, "extra": ""}
    missing = []
    for found in distributions():
        for requirement in map(Requirement, found.requires or ()) if normal(found.name) in names else ():
            applies = requirement.marker is None or requirement.marker.evaluate(environment)
            if applies and normal(requirement.name) not in names:
                missing.append(f"{found.name}: {requirement}")
    assert not missing


def normal(name: str) -> str:
    return re.sub("[._]", "-", name.lower())
