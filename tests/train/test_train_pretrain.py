"""Pretraining a small CLIP: learning, resuming, and the open_clip folder that it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from support.art import tiny_sheet
from vidlex.model.emoji.vocabulary import SCENES
from vidlex.model.emoji.world import World
from vidlex.model.suite.pretrain import ImageTask, caption, main, shared_cross_entropy, to_pixels
from vidlex.model.suite.pretrain_config import PretrainConfig

TINY = PretrainConfig(
    image_size=32, patch_size=8, embed_dim=32, vision_width=32, vision_layers=2, text_width=32, text_layers=1,
    num_image_steps=300, batch_size=32, num_text_steps=150, text_batch_size=32, num_cached_pictures=256, bf16=False,
    image_learning_rate=3e-3, text_learning_rate=3e-3,
)  # fmt: skip


def test_pretrained_clip_recognises_scenes_in_open_clip(tmp_path: Path) -> None:
    folder = main(TINY, tmp_path, tmp_path, sheet=tiny_sheet())
    name = f"local-dir:{folder}"
    model, _, _ = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    test = World(tmp_path, canvas=32, split="test", sheet=tiny_sheet())
    sample = test.pictures(128, torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = F.normalize(model.eval().encode_image(to_pixels(sample.frames[:, 0], "cpu")), dim=-1)
        texts = F.normalize(model.encode_text(tokenizer([f"a photo of a {scene}" for scene in SCENES])), dim=-1)
    truth = sample.targets[:, [test.labels.index(scene) for scene in SCENES]].float().argmax(dim=1)
    accuracy = ((images @ texts.T).argmax(dim=1) == truth).float().mean().item()
    assert accuracy > 0.5, f"{accuracy = }, chance is {1 / len(SCENES)}"

    states = sorted(p.name for p in tmp_path.glob("*.state.safetensors"))
    assert states == ["image.state.safetensors", "text.state.safetensors"]
    weights = (folder / "open_clip_model.safetensors").read_bytes()
    main(TINY, tmp_path, tmp_path, sheet=tiny_sheet())  # nothing to do
    assert (folder / "open_clip_model.safetensors").read_bytes() == weights


def test_precision_is_measured_once_per_run(tmp_path: Path) -> None:
    short = replace(TINY, num_image_steps=2, num_text_steps=2, bf16=None)
    main(short, tmp_path, tmp_path, sheet=tiny_sheet())
    run = json.loads((tmp_path / "run.json").read_text())
    assert min(run["bf16"]["float32_seconds"], run["bf16"]["bfloat16_seconds"]) > 0
    assert {run["stages"][stage]["loop"]["bf16"] for stage in ("image", "text")} == {run["bf16"]["used"]}
    main(short, tmp_path, tmp_path, sheet=tiny_sheet())
    assert json.loads((tmp_path / "run.json").read_text())["bf16"] == run["bf16"]


def test_pictures_of_several_steps_are_rendered_in_one_call(tmp_path: Path) -> None:
    config = replace(TINY, batch_size=4, num_steps_drawn=3)
    worlds = {"train": World(tmp_path, canvas=32, part="pretrain", sheet=tiny_sheet())}

    def pictures(task: ImageTask, step: int) -> torch.Tensor:
        sample, rows = task._pictures(step)
        return sample.frames[rows]

    def task() -> ImageTask:
        return ImageTask(open_clip.CLIP(**config.architecture()), worlds, config)

    one = task()
    in_order = [pictures(one, step) for step in range(6)]
    assert all(len(frames) == 4 for frames in in_order)
    assert len({frames.numpy().tobytes() for frames in in_order}) == 6
    assert torch.equal(pictures(task(), 4), in_order[4])  # as in a resumed run


def test_shared_cross_entropy_by_hand() -> None:
    """Two true names of four at equal logits: -log(1/4)."""
    loss = shared_cross_entropy(torch.zeros(1, 4), torch.tensor([[True, True, False, False]]))
    assert loss.item() == pytest.approx(1.386294, abs=1e-6)


def test_captions_name_some_of_the_names() -> None:
    generator = torch.Generator().manual_seed(0)
    captions = {caption(["dog", "beach"], generator) for _ in range(50)}
    assert captions == {"a dog", "a beach", "a dog and a beach", "a beach and a dog"}
