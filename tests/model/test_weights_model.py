"""What a model needs, fetched before it is loaded: from a hub on loopback, from wheels, or nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
import termios
from pathlib import Path

import open_clip
import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from support.hub import model_hub
from support.tiny import EMBED_DIM, TEXT, VISION, tiny_clip
from vidlex.model import specs
from vidlex.model.factory import load_classifier
from vidlex.model.specs import (
    ALIASES,
    DEFAULT_MODEL,
    ModelNotFound,
    check_spec,
    checkpoint_folder,
    is_checkpoint_spec,
    list_zoo,
    zoo_dir,
)
from vidlex.model.weights import model as model_weights
from vidlex.model.weights.cache import WeightsError
from vidlex.model.weights.llm import fetch_llm
from vidlex.model.weights.model import fetch_model
from vidlex.model.weights.tower import fetch_tower
from vidlex.service.cli import app

# Weights of the alias `clip` are too large for a test; everything else is as in `vidlex serve --model clip`.
FETCH_AND_LOAD = """
import os, sys
from vidlex.model import specs
specs.ALIASES["clip"] = "open_clip:hf-hub:org/tiny"
from vidlex.service.cli import app
app(["weights", "fetch", "clip"], standalone_mode=False)
os.environ["HF_HUB_OFFLINE"] = "1"
from vidlex.model.weights.model import is_cached
from vidlex.model.factory import load_classifier
model = load_classifier("clip", device="cpu")
print("loaded:", is_cached("clip"), model.id, *model.encode_labels(["dog"]).shape)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An open_clip model as repositories of the hub hold it, with the same weights in another format."""
    folder = tmp_path / "repository"
    folder.mkdir()
    model, _ = tiny_clip()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    model_cfg = {"embed_dim": EMBED_DIM, "vision_cfg": VISION, "text_cfg": TEXT}
    preprocess_cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
    )
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "model.safetensors").write_bytes(b"the same for transformers")
    return folder


def test_clip_is_downloaded_with_progress_and_then_needs_no_hub(repository: Path, tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    with model_hub({"org/tiny": repository}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "TQDM_DISABLE": "1"}
        command = [sys.executable, "-c", FETCH_AND_LOAD]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=terminal, text=True, check=False)
    os.close(terminal)
    shown = os.read(controller, 1 << 16).decode()
    os.close(controller)
    assert done.returncode == 0, shown
    assert "loaded: True open_clip:hf-hub:org/tiny 1 12" in done.stdout
    assert "100%" in shown and re.search(r"\dMB", shown), shown
    assert sorted(hub.downloads) == ["org/tiny/open_clip_config.json", "org/tiny/open_clip_model.safetensors"]


def test_without_a_hub_the_error_names_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*args: object, **kwargs: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(WeightsError) as raised:
        fetch_model("clip")
    message = str(raised.value)
    assert "'timm/ViT-B-32-SigLIP2-256'" in message and "open_clip:local-dir:/path" in message
    assert all(name in message for name in list_zoo())
    with pytest.raises(WeightsError, match="'some-org/some-model'"):
        fetch_model("transformers:some-org/some-model@main")


def test_where_the_hub_is_forbidden_the_error_says_so_and_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the deployment, where replicas only read the volume of models."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "models"))
    with pytest.raises(WeightsError, match=r"is not in .*models, and HF_HUB_OFFLINE .*docker compose run --rm fetch"):
        fetch_model("transformers:some-org/some-model")


def test_clip_names_weights_that_open_clip_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, tuple[str, ...]] = {}

    def record(name: str, *, patterns: tuple[str, ...], **_: object) -> Path:
        asked[name] = tuple(patterns)
        return Path(name)

    monkeypatch.setattr(model_weights, "fetch_repository", record)
    assert fetch_model("clip") == [Path("timm/ViT-B-32-SigLIP2-256")]
    (patterns,) = asked.values()
    assert {"open_clip_*.safetensors", "tokenizer*"} <= set(patterns)
    asked.clear()
    fetch_model("open_clip:ViTamin-S/datacomp1b")  # its entry names a file
    assert asked == {"jienengchen/ViTamin-S": ("pytorch_model.bin",)}


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    """A small SigLIP 2 as its repository holds it: a tokenizer of its own, a bias, no causal mask."""
    folder = tmp_path / "siglip"
    model, _ = tiny_clip("siglip", folder)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    original = open_clip.get_model_config(ALIASES["clip"].removeprefix("open_clip:").partition("/")[0])
    text = TEXT | {"context_length": 40, "vocab_size": model.text.vocab_size}
    kept = ("hf_tokenizer_name", "tokenizer_kwargs", "no_causal_mask", "proj_bias", "pool_type", "norm_kwargs")
    text |= {key: original["text_cfg"][key] for key in kept}
    model_cfg = original | {"embed_dim": EMBED_DIM, "vision_cfg": VISION, "text_cfg": text}
    preprocess_cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
    )
    return folder


def test_an_alias_is_its_model_everywhere(siglip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a copy of the repository and no hub, as the error message advises."""
    monkeypatch.setitem(specs.ALIASES, "clip", f"open_clip:local-dir:{siglip}")
    monkeypatch.setattr(socket, "getaddrinfo", None)
    check_spec("clip")
    assert not is_checkpoint_spec("clip") and fetch_model("clip") == []
    names = ["dog", "a red bus"]
    model, spelled_out = (load_classifier(spec, device="cpu") for spec in ("clip", ALIASES["clip"]))
    assert (model.id, model.fingerprint) == (spelled_out.id, spelled_out.fingerprint)
    features = model.encode_labels(names)
    assert (features == spelled_out.encode_labels(names)).all() and abs(features[0] @ features[1]) < 0.999
    assert model.scorer.logit_bias == -10.0


def test_a_checkpoint_needs_its_language_model(tmp_path: Path) -> None:
    assert fetch_model("emoji-small") == [fetch_llm()]
    folder = tmp_path / "class-names"
    folder.mkdir()
    config = json.loads((zoo_dir() / "emoji-small" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"method": "class_name"}))
    assert fetch_model(str(folder)) == fetch_model("dummy") == []
    with pytest.raises(ModelNotFound, match=r"did you mean 'clip'.*clip \(downloaded\), open_clip:"):
        checkpoint_folder("clop")


def test_the_default_is_shipped() -> None:
    assert DEFAULT_MODEL in list_zoo()


def test_the_command_fetches_a_model_or_what_the_shipped_ones_need() -> None:
    def fetched(*arguments: str) -> list[dict[str, str]]:
        done = CliRunner().invoke(app, ["weights", "fetch", "--json", *arguments])
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    shipped = {"smollm2-135m-instruct": str(fetch_llm()), "efficientnet-lite2": str(fetch_tower())}
    assert fetched() == [{"name": name, "path": path} for name, path in shipped.items()]
    assert fetched("emoji-small") == [{"name": "emoji-small", "path": str(fetch_llm())}]
    assert fetched(str(fetch_llm())) == [{"name": str(fetch_llm()), "path": str(fetch_llm())}]
    assert fetched("dummy") == []
    unknown = CliRunner().invoke(app, ["weights", "fetch", "transformers:no such name"])
    assert unknown.exit_code == 2 and "neither a folder nor ORG/NAME" in unknown.stderr
