"""The wheel: what it contains, and how it runs with the client's packages alone, in a folder with modules of a user."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

from support.live import live_service
from support.paths import ROOT
from vidlex.service.commands.extras import EXTRAS

CLIENT = ("typer", "rich", "httpx", "pydantic", "pydantic-settings")
REQUIREMENT_NAME = re.compile(r"[A-Za-z0-9._-]+")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files that git knows, so that nothing is written to the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.split("\0"):
        source, target = ROOT / name, folder / "source" / name
        if name and (source.is_file() or source.is_symlink()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--wheel-dir", folder, folder / "source"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def entries(wheel: Path) -> dict[str, zipfile.ZipInfo]:
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry for entry in archive.infolist()}


def test_the_wheel_contains_one_package(entries: dict[str, zipfile.ZipInfo]) -> None:
    tops = {name.partition("/")[0] for name in entries}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"vidlex", info}
    assert f"{info}/licenses/LICENSE" in entries
    assert {name.split("/")[1] for name in entries if name.startswith("vidlex/")} == {
        "__init__.py",
        "__main__.py",
        "migrations",
        "model",
        "py.typed",
        "ray.py",
        "service",
    }


def test_the_wheel_contains_all_files_of_the_package(entries: dict[str, zipfile.ZipInfo]) -> None:
    sources = [path for top in ("service", "model", "migrations") for path in (ROOT / top).rglob("*.py")]
    sources += [path for top in ("service/web", "model/zoo") for path in (ROOT / top).rglob("*") if path.is_file()]
    assert not {f"vidlex/{path.relative_to(ROOT)}" for path in sources} - set(entries)
    for name in ("web/index.html", "web/vendor/swagger-ui/swagger-ui-bundle.js", "web/vendor/swagger-ui/LICENSE"):
        assert f"vidlex/service/{name}" in entries
    assert "vidlex/model/zoo/emoji-small/model.safetensors" in entries
    assert "vidlex/model/photo/photos.jsonl" in entries
    assert sum(name.endswith(".mp4") for name in entries) == 4


def test_the_wheel_contains_no_tests_and_no_caches(entries: dict[str, zipfile.ZipInfo]) -> None:
    assert not [
        name for name in entries if re.search(r"(^|/)(tests?|conftest\.py|test_\w+\.py|__pycache__)(/|$)", name)
    ]


def test_every_file_of_the_wheel_is_readable(entries: dict[str, zipfile.ZipInfo]) -> None:
    modes = {name: entry.external_attr >> 16 & 0o777 for name, entry in entries.items()}
    assert not [name for name, mode in modes.items() if mode & 0o444 != 0o444]


@pytest.fixture(scope="module")
def client_bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a virtual environment with the wheel and links to the client's packages."""
    folder = tmp_path_factory.mktemp("client") / "venv"
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for found in closure(CLIENT):
        for name in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            (packages / name).symlink_to(Path(str(found.locate_file(name))))
    command = [sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--no-deps", "--no-index", wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def closure(names: tuple[str, ...]) -> Iterator[Distribution]:
    """The distributions and all that they require, of those that are installed here."""
    seen: set[str] = set()
    pending = list(names)
    while pending:
        name = re.sub(r"[._]", "-", pending.pop().lower())
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # required on other platforms only
        yield found
        for requirement in found.requires or ():
            match = REQUIREMENT_NAME.match(requirement)
            if match is not None and "extra ==" not in requirement:
                pending.append(match[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder, whose modules have common names and must not be imported."""
    for name in ("model", "service", "migrations", "redis", "structlog"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError('the module of the user was imported')\n")
    return tmp_path


def run(command: Path | str, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("VIDLEX_", "PYTHON"))}
    return subprocess.run(
        [command, *arguments],
        cwd=cwd,
        env=inherited | {"COLUMNS": "200", "HOME": str(cwd)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_the_package_imports_nothing_else(client_bin: Path, folder: Path) -> None:
    """Also where all packages are installed."""
    code = "import sys, time; started = time.perf_counter(); import vidlex; seconds = time.perf_counter() - started"
    code += "; print(round(seconds, 3), *sys.modules)"
    for python in (client_bin / "python", Path(sys.executable)):
        done = run(python, "-c", code, cwd=folder)
        assert done.returncode == 0, done.stderr
        seconds, *modules = done.stdout.split()
        assert not {"torch", "fastapi", "httpx", "numpy", "pydantic", "typer", "vidlex.service", "model"} & set(modules)
        print(f"import vidlex: {seconds} s")


def test_the_command_line_runs_with_the_clients_packages(client_bin: Path, folder: Path) -> None:
    for arguments in (["--help"], ["--version"], ["labels", "--help"], ["train", "--help"], ["serve", "--help"]):
        done = run(client_bin / "vidlex", *arguments, cwd=folder)
        assert (done.returncode, done.stderr) == (0, ""), arguments
    modules = run(client_bin / "python", "-m", "vidlex", "--version", cwd=folder)
    assert modules.stdout.startswith("vidlex ")


def test_unreachable_service_is_reported(client_bin: Path, folder: Path) -> None:
    done = run(client_bin / "vidlex", "labels", "list", "--url", "http://127.0.0.1:1", cwd=folder)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: no service at http://127.0.0.1:1") and len(done.stderr.splitlines()) == 1


def test_the_client_works_with_a_live_service(client_bin: Path, folder: Path) -> None:
    vidlex = client_bin / "vidlex"
    samples = json.loads(run(vidlex, "samples", "--model", "emoji-small", "--json", cwd=folder).stdout)
    library = "import sys; from vidlex import Client; print(*(len(r.labels) for r in Client().tag(sys.argv[1:])))"
    with live_service(folder / "data") as url:
        tagged = run(client_bin / "python", "-c", library, samples[0]["path"], cwd=folder, VIDLEX_URL=url)
        assert tagged.stdout == "0\n", tagged.stderr
        for arguments, expected in (
            (["labels", "add", "red", "blue"], "added red"),
            (["labels", "list"], "blue"),
            (["labels", "export", "labels.csv"], "wrote 2 labels"),
            (["labels", "diff", "labels.csv"], "no differences"),
            (["labels", "card", "red"], "prompt"),
            (["models", "list"], "dummy"),
            (["classify", samples[0]["path"]], "red"),
            (["classify", "--json", samples[0]["path"]], '"labels"'),
            (["keys", "create", "--scope", "admin", "--json"], "vdx_"),
        ):
            done = run(vidlex, *arguments, cwd=folder, VIDLEX_URL=url)
            assert (done.returncode, expected in done.stdout) == (0, True), (arguments, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("serve", "server"),
        ("serve --model dummy --json", "server"),
        ("demo", "server"),
        ("demo --model dummy", "server"),
        ("migrate", "server"),
        ("migrate --json", "server"),
        ("keys create --direct", "server"),
        ("keys list --direct", "server"),
        ("labels verify", "server"),
        ("tag . --out tags.parquet --json", "bulk"),
        ("weights fetch", "server"),
        ("samples", "server"),
        ("bench match --quick", "server"),
        ("bench match --json", "server"),
        ("data build tao", "server"),
        ("data build youtube8m", "train"),
        ("data build emoji", "train"),
        ("train fit", "train"),
        ("train fit --json", "train"),
        ("train pretrain", "train"),
        ("eval manifest.jsonl", "train"),
        ("eval suite", "train"),
    ],
)
def test_command_names_the_extra_that_it_needs(client_bin: Path, folder: Path, command: str, extra: str) -> None:
    (folder / "manifest.jsonl").touch()
    words = command.split()
    done = run(client_bin / "vidlex", *words, cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    detail = json.loads(done.stderr)["error"]["detail"] if "--json" in words else done.stderr
    assert f"pip install 'vidlex[{extra}]'" in detail
    assert f"vidlex {words[0]}" in detail and "needs" in detail


def test_doctor_reports_missing_packages(client_bin: Path, folder: Path) -> None:
    done = run(client_bin / "vidlex", "doctor", "--json", cwd=folder)
    assert done.returncode == 1, done.stderr
    findings = json.loads(done.stdout)["findings"]
    missing = next(finding for finding in findings if finding["what"] == "packages")
    assert missing["status"] == "error" and "torch" in missing["detail"] and "vidlex[server]" in missing["detail"]
    assert not [finding for finding in findings if "ModuleNotFoundError" in finding["detail"]]


def test_every_package_of_an_extra_is_known() -> None:
    """Of those that `vidlex` imports, so that the message about a missing one names its extra."""
    known = {module for modules in EXTRAS.values() for module in modules}
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    importable = {"open-clip-torch": "open_clip", "pillow": "pil", "faiss-cpu": "faiss"}
    importable |= {"scikit-learn": "sklearn"}
    for extra in ("server", "train", "bulk", "ray"):
        block = re.search(rf"^{extra} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
        assert block is not None
        for name in re.findall(r'"([A-Za-z0-9_-]+)[>=]', block[1]):
            dashed = name.lower().replace("_", "-")
            assert importable.get(dashed, dashed.replace("-", "_")) in {module.lower() for module in known}, name
