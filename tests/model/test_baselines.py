"""The baselines: against known results, and trained for a few steps, saved and served."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from support.art import tiny_sheet
from support.tiny import TEXT, VISION, tiny_clip, tiny_clip_text, tiny_llm, write_llm
from vidlex.model.baselines.class_name import TEMPLATES, ClassNameLabelEncoder
from vidlex.model.baselines.coop import CoOpLabelEncoder
from vidlex.model.baselines.dualcoop import LOGIT_SCALE, DualCoOpLabelEncoder, aggregate, frame_regions
from vidlex.model.baselines.fixed_llm import MAX_ATTRIBUTES, MAX_CHARACTERS, FixedLlmLabelEncoder, parse_attributes
from vidlex.model.classifier import LabelTextError
from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig
from vidlex.model.emoji.world import World
from vidlex.model.eval.metrics import summarise
from vidlex.model.factory import load_classifier
from vidlex.model.sources.config import EmojiConfig
from vidlex.model.sources.emoji import EmojiSource, emoji_opener
from vidlex.model.specs import ModelNotFound
from vidlex.model.text.clip_text import ClipText
from vidlex.model.train.baseline import BaselineNetwork, BaselineTask, asymmetric_loss
from vidlex.model.train.export import write_open_clip_folder
from vidlex.model.train.fit_config import FitConfig
from vidlex.model.train.loop.processes import WHOLE_BATCH
from vidlex.model.train.losses import weighted_bce
from vidlex.model.train.run_fit import main
from vidlex.model.video.encoder import VideoEncoder

NAMES = ["dog", "golden retriever", "juggling balls"]


def test_template_sets_are_complete() -> None:
    assert [len(TEMPLATES[name]) for name in ("name", "photo", "imagenet", "video")] == [1, 1, 80, 28]  # type: ignore[index]
    assert all(t.count("{}") == 1 for group in TEMPLATES.values() for t in group)
    assert len(set(TEMPLATES["video"])) == 28


@pytest.mark.parametrize("kind", ["clip", "mobileclip_causal", "mobileclip_bidirectional"])
def test_coop_initialised_with_words_equals_zero_shot_clip(kind: str) -> None:
    text = tiny_clip_text(kind)
    coop = CoOpLabelEncoder(text, words="a photo of a")
    zero_shot = ClassNameLabelEncoder(text, TEMPLATES["photo"])
    assert torch.allclose(coop.encode_labels(NAMES), zero_shot.encode_labels(NAMES), atol=1e-6)
    with torch.no_grad():
        coop.context.copy_(coop.context.flip(1))
    assert not torch.allclose(coop.encode_labels(NAMES), zero_shot.encode_labels(NAMES), atol=1e-3)


def test_coop_trains_only_its_context_and_rejects_long_names() -> None:
    coop = CoOpLabelEncoder(tiny_clip_text(), num_context=16)
    assert [name for name, _ in coop.named_parameters()] == ["context"]
    coop(NAMES).sum().backward()
    assert coop.context.grad is not None and coop.context.grad.abs().sum() > 0
    coop.check_label("word " * 57)  # 1 + 16 + 57 + "." + 1 = 76
    with pytest.raises(LabelTextError, match="too long"):
        coop.check_label("word " * 59)
    assert coop.encode_labels([]).shape == (0, 12)


def test_dualcoop_with_equal_prompts_scores_one_half() -> None:
    dual = DualCoOpLabelEncoder(tiny_clip_text(), num_context=4)
    assert dual.encode_labels(NAMES).abs().max() > 0
    with torch.no_grad():
        dual.negative.copy_(dual.positive)
    features = F.normalize(torch.randn(3, 5, 12), dim=-1)
    logits = aggregate(frame_regions(features), *dual.encode_prompt_pair(NAMES))
    assert torch.equal(torch.sigmoid(logits), torch.full((3, 3), 0.5))
    assert dual.encode_labels(NAMES).abs().max() == 0


def test_dualcoop_of_equal_frames_is_an_inner_product() -> None:
    dual = DualCoOpLabelEncoder(tiny_clip_text(), num_context=4)
    video = F.normalize(torch.randn(2, 1, 12), dim=-1)
    pooled = aggregate(frame_regions(video.expand(-1, 6, -1)), *dual.encode_prompt_pair(NAMES))
    assert torch.allclose(pooled, 2 * LOGIT_SCALE * video[:, 0] @ dual(NAMES).T, atol=1e-4)


def test_dualcoop_pools_by_the_positive_scores() -> None:
    """Two regions and D = 2, computed by hand: the first region has the weight e^20 / (e^20 + 1)."""
    regions = torch.eye(2)[None]
    logits = aggregate(regions, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    first = math.exp(20) / (math.exp(20) + 1)
    assert float(logits) == pytest.approx(5 * (20 * first - 20 * (1 - first)), rel=1e-5)


def test_asymmetric_loss_matches_values_computed_by_hand() -> None:
    """At p = 1/2 the positive contributes 1/2 ln 2, the negative 0.45^2 * -ln 0.55."""
    loss = asymmetric_loss(torch.zeros(1, 2), torch.tensor([[True, False]]), torch.ones(2))
    assert float(loss) == pytest.approx(0.5 * math.log(2) - 0.45**2 * math.log(0.55), abs=1e-6)
    easy = asymmetric_loss(torch.tensor([[50.0, -50.0]]), torch.tensor([[True, False]]), torch.ones(2))
    assert float(easy) == pytest.approx(0, abs=1e-6)
    plain = asymmetric_loss(torch.ones(1, 2), torch.tensor([[True, False]]), torch.ones(2), focus=(0, 0), margin=0)
    assert float(plain) == pytest.approx(
        float(weighted_bce(torch.ones(1, 2), torch.tensor([[True, False]]), torch.ones(2), 1.0)), abs=1e-6
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" ball, grass, players", ["ball", "grass", "players"]),
        ("\n- a ball\n* green grass.\n3) players\n", ["a ball", "green grass", "players"]),
        (" ball, Ball, soccer, ball\n\nLabel: wedding\nVisible: bride", ["ball"]),
        (" ball\nLabel: wedding", ["ball"]),
        ("", []),
        (" ,,; \n", []),
        ("x" * 100 + ", ok", ["ok"]),
        ("one two three four five six seven eight nine, ok", ["ok"]),
        ("a\x00b, ok", ["ok"]),
        (", ".join(f"thing {i}" for i in range(50)), [f"thing {i}" for i in range(MAX_ATTRIBUTES)]),
    ],
)
def test_generated_lists_are_parsed(text: str, expected: list[str]) -> None:
    assert parse_attributes(text, "Soccer") == expected


@settings(deadline=None)
@given(st.text(max_size=300), st.text(max_size=10))
def test_any_text_gives_a_bounded_list(text: str, name: str) -> None:
    attributes = parse_attributes(text, name)
    assert len(attributes) <= MAX_ATTRIBUTES and len({a.casefold() for a in attributes}) == len(attributes)
    assert all(0 < len(a) <= MAX_CHARACTERS and a.isprintable() and "," not in a for a in attributes)


def test_fixed_llm_averages_name_and_attributes(tmp_path: Path) -> None:
    text = tiny_clip_text()
    fixed = FixedLlmLabelEncoder(tiny_llm(tmp_path), text, prompt_version="v1")
    features = fixed.encode_attributes(["dog", "cat"], [["fur", "four legs"], []])
    parts = F.normalize(text.encode(["dog, fur", "dog, four legs"]), dim=-1)
    assert torch.allclose(features[0], parts.mean(dim=0), atol=1e-6) and features[0].norm() < 1
    assert torch.allclose(features[1], ClassNameLabelEncoder(text)(["cat"])[0], atol=1e-6)  # without attributes
    alone, batch = fixed.generate_texts(["dog"]), fixed.generate_texts(["a much longer name", "dog"])
    assert alone[0] == batch[1]
    assert fixed.encode_labels(["dog", "cat"]).shape == (2, 12)
    fixed.renormalize = True
    assert fixed.encode_labels(["dog"]).norm() == pytest.approx(1, abs=1e-5)


def network_of(label: object, clip: object, *, train_towers: bool = False, places: str = "video") -> BaselineNetwork:
    config = VideoEncoderConfig(num_branch_blocks=0, num_frames=3)
    video = VideoEncoder(clip.visual, config, mean=(0.5,) * 3, std=(0.5,) * 3)  # type: ignore[attr-defined]
    return BaselineNetwork(clip, video, label, places=places, train_towers=train_towers)  # type: ignore[arg-type]


def test_untrained_vificlip_equals_frozen_clip_with_the_frame_mean() -> None:
    clip, tokenizer = tiny_clip()
    network = network_of(ClassNameLabelEncoder(ClipText(clip, tokenizer), TEMPLATES["photo"]), clip, train_towers=True)
    frames = torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    pixels = (frames.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        mean = torch.stack([clip.encode_image(video).mean(dim=0) for video in pixels])
        texts = clip.encode_text(tokenizer([f"a photo of a {name}." for name in NAMES]))
        expected = 15 * F.normalize(mean, dim=-1) @ F.normalize(texts, dim=-1).T - 7
        logits = network.logits(network.frame_features(frames), NAMES)
    assert torch.allclose(logits, expected, atol=1e-4)
    network.logits(network.frame_features(frames), NAMES).sum().backward()
    assert (
        clip.visual.conv1.weight.grad is not None and clip.transformer.resblocks[0].attn.in_proj_weight.grad is not None
    )
    assert clip.token_embedding.weight.grad is None and clip.logit_scale.grad is None


FIT = FitConfig(num_joint_steps=6, batch_size=8, num_step_labels=64, num_validation_videos=24, bf16=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    clip, _ = tiny_clip()
    config = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}
    return write_open_clip_folder(clip, config, (0.5,) * 3, (0.5,) * 3, root / "clip"), write_llm(root / "llm")


def fit(folders: tuple[Path, Path], out: Path, method: Method, **baseline: object) -> Path:
    clip, llm = folders
    return main(
        FIT, VideoEncoderConfig(num_frames=3), LabelEncoderConfig(llm=str(llm)),
        BaselineConfig(num_context=4, **baseline),  # type: ignore[arg-type]
        method=method, clip_name=f"local-dir:{clip}", out=out, checkpoint_id=method, half=False,
        open_source=emoji_opener(EmojiConfig(), out, sheet=tiny_sheet()),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["coop", "dualcoop", "vificlip"])
def test_a_baseline_is_trained_and_served(
    folders: tuple[Path, Path], worlds: dict[str, World], tmp_path: Path, method: Method
) -> None:
    """The served scores equal those of the trained network on the validation videos."""
    folder = fit(folders, tmp_path, method, learning_rate=1e-3 if method == "vificlip" else None)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["validation"]
    classifier = load_classifier(str(folder), device="cpu")
    world = worlds["val"]
    sample = world.videos(24, 3, world.generator(300_000))
    features = classifier.encode_video([v.permute(0, 2, 3, 1).numpy() for v in sample.frames])
    labels = classifier.encode_labels(world.labels)
    assert np.linalg.norm(labels, axis=1).max() <= 1 + 1e-5
    served = summarise(classifier.scorer.logit(features @ labels.T), sample.targets.numpy())
    assert served["micro_aupr"] == pytest.approx(metrics["micro_aupr"], abs=1e-3)
    assert classifier.info()["method"] == method


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    cache = tmp_path_factory.mktemp("art")
    return {split: World(cache, canvas=16, split=split, sheet=tiny_sheet()) for split in ("train", "val")}


@pytest.mark.parametrize("method", ["coop", "dualcoop", "vificlip", "frames"])
def test_the_loss_decreases(worlds: dict[str, World], method: str) -> None:
    clip, tokenizer = tiny_clip()
    clip.requires_grad_(False)
    text = ClipText(clip, tokenizer)
    label = {
        "coop": lambda: CoOpLabelEncoder(text, num_context=4),
        "dualcoop": lambda: DualCoOpLabelEncoder(text, num_context=4),
        "frames": lambda: DualCoOpLabelEncoder(text, num_context=4),
        "vificlip": lambda: ClassNameLabelEncoder(text, TEMPLATES["photo"]),
    }[method]()
    places = "frames" if method == "frames" else "video"
    network = network_of(label, clip, train_towers=method == "vificlip", places=places)
    baseline = BaselineConfig(learning_rate=1e-3 if method == "vificlip" else 1e-2)
    source = EmojiSource(worlds["train"], worlds["val"], EmojiConfig(), FIT, network.video.config.num_frames)
    task = BaselineTask("coop", network, source, FIT, baseline)
    losses = []
    for _ in range(30):  # the same batch
        task.optimizer.zero_grad()
        loss, _ = task.micro_batch_loss(0, WHOLE_BATCH)
        loss.backward()  # type: ignore[no-untyped-call]
        task.optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert 0 < task.evaluate()["micro_aupr"] <= 1


def test_dualcoop_over_frames_writes_metrics_but_no_checkpoint(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert fit(folders, tmp_path, "dualcoop", places="frames") == tmp_path
    assert (tmp_path / "metrics.json").is_file() and not (tmp_path / "checkpoint").exists()


def test_zero_shot_models_use_the_requested_prompts(folders: tuple[Path, Path]) -> None:
    clip = f"local-dir:{folders[0]}"
    classifiers = {kind: load_classifier(f"open_clip{kind}:{clip}", device="cpu") for kind in ("", "+name", "+video")}
    assert len({c.fingerprint for c in classifiers.values()}) == 3
    model, tokenizer = open_clip.create_model(clip), open_clip.get_tokenizer(clip)
    templates = [lambda name, t=t: t.format(name) for t in TEMPLATES["video"]]
    expected = open_clip.build_zero_shot_classifier(model.eval(), tokenizer, NAMES, templates)
    assert np.allclose(classifiers["+video"].encode_labels(NAMES), expected.T.detach().numpy(), atol=1e-5)
    with pytest.raises(ModelNotFound, match="unknown prompts 'poem'"):
        load_classifier(f"open_clip+poem:{clip}", device="cpu")


def test_fixed_llm_is_served(folders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = fit(folders, tmp_path, "fixed_llm")
    classifier = load_classifier(str(folder), device="cpu")
    assert classifier.encode_labels(["ball"]).shape == (1, 12) and classifier.info()["llm"] == str(folders[1])
