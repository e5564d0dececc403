"""What is refused, what a fingerprint covers, and the model hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.pretrained import WRITERS, write_clip
from vidlex.model.factory import load_classifier
from vidlex.model.pretrained.loading import FAMILIES
from vidlex.model.specs import TRANSFORMERS_TYPES, ModelNotFound, check_spec, is_checkpoint_spec
from vidlex.model.weights.cache import WeightsError
from vidlex.model.weights.hub import MODEL_FILES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_type_has_a_family_and_a_test() -> None:
    assert set(FAMILIES) == set(TRANSFORMERS_TYPES) == {*WRITERS, "pe_video"}
    assert not is_checkpoint_spec("transformers:a/b") and not is_checkpoint_spec("transformers+photo:a/b")


def test_other_types_are_refused_with_the_supported_ones(copy: Path) -> None:
    for model_type in ("llama", None):
        change_json(copy / "config.json", model_type=model_type)
        for refuse in (check_spec, load_classifier):
            with pytest.raises(ModelNotFound, match=f"{model_type!r}, which is not one of: clip, pe_audio_video"):
                refuse(f"transformers:{copy}")


def test_pickled_weights_are_refused(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    for refuse in (check_spec, load_classifier):
        with pytest.raises(ModelNotFound, match=r"no \.safetensors file, and pickled weights \(\.bin\) are not loaded"):
            refuse(f"transformers:{copy}")


def test_code_of_a_model_is_not_run(copy: Path) -> None:
    (copy / "attack.py").write_text("raise SystemExit('this code was run')\n")
    change_json(copy / "config.json", auto_map={"AutoModel": "attack.Model", "AutoConfig": "attack.Config"})
    change_json(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["attack.Tokenizer", None]})
    assert load_classifier(f"transformers:{copy}", device="cpu").dim == 24


def test_incomplete_weights_are_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["visual_projection.weight"]
    tensors["logit_scale"] = torch.zeros(3)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFound, match=r"incomplete .*logit_scale, visual_projection\.weight"):
        load_classifier(f"transformers:{copy}", device="cpu")
    (copy / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelNotFound, match="Git LFS pointer"):
        check_spec(f"transformers:{copy}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_resize": False}, "resizes to nothing"),
        ({"size": {"height": 16, "width": 20}}, "not to one square"),
        ({"crop_size": {"height": 32, "width": 32}}, "crops"),
        ({"rescale_factor": 1 / 127.5}, "only 1/255"),
        ({"crop_size": {"height": 8, "width": 8}}, "does not take pictures"),
    ],
)
def test_preprocessing_that_cannot_be_followed_is_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    change_json(copy / "preprocessor_config.json", **changes)
    with pytest.raises(ModelNotFound, match=message):
        load_classifier(f"transformers:{copy}", device="cpu")


def test_missing_parts_are_named(copy: Path, tmp_path: Path) -> None:
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"cannot load copy .*OSError"):
        load_classifier(f"transformers:{copy}", device="cpu")
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelNotFound, match="cannot be read"):
        check_spec(f"transformers:{copy}")
    (copy / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        check_spec(f"transformers:{copy}")
    for name in (f"{tmp_path}/nowhere", "name", "", "a/b/c", "~/nowhere"):
        with pytest.raises(ModelNotFound, match="neither a folder nor ORG/NAME"):
            check_spec(f"transformers:{name}")


def test_prompts_of_another_kind_are_refused(folder: Path) -> None:
    for prompting in ("llm", "nonsense"):
        with pytest.raises(ModelNotFound, match="known: name, photo, imagenet, video"):
            load_classifier(f"transformers+{prompting}:{folder}")


def test_the_fingerprint_covers_what_determines_a_vector(folder: Path, copy: Path) -> None:
    def fingerprint(path: Path, prompting: str = "") -> str:
        return load_classifier(f"transformers{prompting}:{path}", device="cpu").fingerprint

    first = fingerprint(folder)
    change_json(copy / "config.json", transformers_version="0", _name_or_path="elsewhere")
    assert fingerprint(copy) == first
    assert fingerprint(folder, "+photo") != first
    seen = {first}
    config = json.loads((copy / "config.json").read_text())
    for path, changes in (
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}),
        ("config.json", {"vision_config": config["vision_config"] | {"num_attention_heads": 4}}),
    ):
        change_json(copy / path, **changes)
        seen.add(fingerprint(copy))
    tensors = load_file(copy / "model.safetensors")
    tensors["text_projection.weight"][0, 0] += 0.01
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    seen.add(fingerprint(copy))
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    seen.add(fingerprint(copy))
    assert len(seen) == 5


def test_the_hub_is_asked_for_the_configuration_first(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, str | None, tuple[str, ...]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((name, revision, tuple(allow_patterns)))
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    check_spec("transformers:org/name@refs/pr/1")
    assert not asked
    classifier = load_classifier("transformers:org/name@refs/pr/1", device="cpu")
    assert classifier.id == "transformers:org/name@refs/pr/1"
    assert asked == [("org/name", "refs/pr/1", ("config.json",)), ("org/name", "refs/pr/1", MODEL_FILES)]
    change_json(copy / "config.json", model_type="llama")
    asked.clear()
    with pytest.raises(ModelNotFound, match="'llama', which is not one of"):
        load_classifier("transformers:org/name")
    assert asked == [("org/name", None, ("config.json",))]


def test_an_unreachable_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*args: object, **kwargs: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(WeightsError, match=r"could not fetch 'org/name'.*local model folder"):
        load_classifier("transformers:org/name")
