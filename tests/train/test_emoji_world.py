"""The procedural world: seeds, labels, motions, rendering, and the split into seen and unseen."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.art import tiny_sheet
from vidlex.model.emoji.assets import ArtError, ArtPackage, SpriteSheet, fetch_package, load_sheet
from vidlex.model.emoji.keywords import drop_common_keywords, emoji_characters, filter_keywords
from vidlex.model.emoji.motion import STILL, Pose, sample_pose
from vidlex.model.emoji.nouns import Noun, build_nouns, noun_name
from vidlex.model.emoji.protocol import COLUMNS, Protocol, pair_name
from vidlex.model.emoji.render import crop_backgrounds, render
from vidlex.model.emoji.scenes import scene_bank
from vidlex.model.emoji.vocabulary import ACTION_WORDS, ACTIONS, HELD_OUT_ACTIONS, SCENE_WORDS, SCENES
from vidlex.model.emoji.world import World
from vidlex.model.emoji.writer import write_mp4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("art"), canvas=48, sheet=tiny_sheet(), split="val")


def test_videos_depend_only_on_the_seed(world: World) -> None:
    a = world.videos(4, 5, world.generator(7))
    b = world.videos(4, 5, world.generator(7))
    c = world.videos(4, 5, world.generator(8))
    assert torch.equal(a.frames, b.frames) and torch.equal(a.targets, b.targets)
    assert not torch.equal(a.frames, c.frames)
    assert a.frames.shape == (4, 5, 3, 48, 48) and a.frames.dtype == torch.uint8


def test_labels_match_the_sprites_and_their_synonyms(world: World) -> None:
    sample = world.videos(64, 2, world.generator(0))
    nouns = {noun.name: noun for noun in world.sheet.nouns}
    kinds = world.kinds()
    for row, nouns_shown, actions_shown in zip(sample.targets, sample.nouns, sample.actions, strict=True):
        names = {world.labels[i] for i in row.nonzero()[:, 0].tolist()}
        by_kind = {kind: {name for name in names if kinds[name] == kind} for kind in set(kinds.values())}
        expected = {world.sheet.nouns[i].name for i in nouns_shown.tolist() if i >= 0}
        assert by_kind["noun"] == expected
        assert by_kind["hypernym"] == {h for n in expected for h in nouns[n].hypernyms}
        assert len(by_kind["scene"] & set(SCENES)) == 1
        actions = {ACTIONS[i] for i in actions_shown.tolist() if i >= 0}
        assert by_kind["action"] == {w for a in actions for w in (a, *ACTION_WORDS[a][0])}
        shown = {
            (world.sheet.nouns[n].name, ACTIONS[a])
            for n, a in zip(nouns_shown.tolist(), actions_shown.tolist(), strict=True)
            if a >= 0
        }
        assert by_kind["pair"] == {pair_name(pair) for pair in shown & set(world.protocol.train_pairs)}
    assert (sample.nouns[:, 1] == -1).any() and (sample.nouns[:, 1] >= 0).any()


def test_pictures_have_no_action(world: World) -> None:
    sample = world.pictures(64, world.generator(0))
    actions = torch.tensor([kind in ("action", "pair") for kind in world.kinds().values()])
    assert not sample.targets[:, actions].any() and (sample.actions == -1).all()


def test_every_label_occurs_and_has_a_kind(world: World) -> None:
    targets = world.video_targets(1500, world.generator(1))
    assert targets.any(dim=0).all()
    assert tuple(world.kinds()) == world.labels
    assert set(world.kinds().values()) == {"noun", "hypernym", "scene", "action", "pair"}


def sample_poses(action: str, t: int = 24) -> Pose:
    n = 200
    times = (torch.arange(t) + 0.5) / t
    which = STILL if action == "still" else ACTIONS.index(action)
    return sample_pose(torch.full((n,), which), times, (0.3, 0.6), torch.Generator().manual_seed(3))


def test_motions_match_their_names() -> None:
    def change(v: torch.Tensor) -> torch.Tensor:
        return v[:, -1] - v[:, 0]

    assert (change(sample_poses("moving left").x) < -0.5).all()
    assert (change(sample_poses("moving right").x) > 0.5).all()
    assert (change(sample_poses("rising").y) < -0.5).all()  # y grows downwards
    assert (change(sample_poses("falling").y) > 0.5).all()
    assert (change(sample_poses("growing").size) > 0.1).all()
    assert (change(sample_poses("shrinking").size) < -0.1).all()
    assert (change(sample_poses("spinning").angle).abs() > 3).all()
    assert (sample_poses("swinging").angle.std(dim=1) > 0.1).all()
    assert ((sample_poses("blinking").alpha == 0).any(dim=1) & (sample_poses("blinking").alpha == 1).any(dim=1)).all()
    assert (sample_poses("bouncing").y.std(dim=1) > 0.05).all()
    assert (sample_poses("shaking").x.diff(dim=1).abs().mean(dim=1) > 0.02).all()
    assert (sample_poses("circling").x.std(dim=1) > 0.1).all() and (sample_poses("circling").y.std(dim=1) > 0.1).all()
    assert (change(sample_poses("fading in").alpha) > 0.5).all() and (
        change(sample_poses("fading out").alpha) < -0.5
    ).all()
    assert (change(sample_poses("appearing").alpha) == 1).all() and (
        change(sample_poses("disappearing").alpha) == -1
    ).all()
    assert (change(sample_poses("stretching").stretch) > 0.5).all()
    assert ((sample_poses("flipping").stretch < 0).any(dim=1) & (sample_poses("flipping").stretch > 0).any(dim=1)).all()
    returned = sample_poses("turning back").x
    assert (change(returned).abs() < 0.1).all() and (returned.std(dim=1) > 0.1).all()
    halted = sample_poses("stopping").x
    assert (change(halted).abs() > 0.3).all() and (halted[:, -4:].std(dim=1) < 1e-6).all()
    for name, turns in (("rolling", "x"), ("tumbling", "y")):
        assert (change(getattr(sample_poses(name), turns)).abs() > 0.5).all() and (
            change(sample_poses(name).angle).abs() > 3
        ).all()
    still = sample_poses("still")
    for value in (still.x, still.y, still.size, still.angle, still.alpha, still.stretch):
        assert torch.equal(value, value[:, :1].expand_as(value))


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_changes_something_over_time(action: str) -> None:
    pose = sample_poses(action)
    curves = (pose.x, pose.y, pose.size, pose.angle, pose.alpha, pose.stretch)
    assert sum(float(curve.std(dim=1).mean()) for curve in curves) > 0.02


def test_one_frame_does_not_reveal_the_direction() -> None:
    left, right = sample_poses("moving left").x[:, 12], sample_poses("moving right").x[:, 12]
    assert abs(float(left.mean() - right.mean())) < 0.1
    assert float(left.std() / right.std()) == pytest.approx(1, abs=0.15)


def test_a_sprite_of_half_the_canvas_covers_its_middle_quarter() -> None:
    layers = torch.full((1, 1, 4, 8, 8), 255, dtype=torch.uint8)
    one = torch.ones(1, 1, 2)
    pose = Pose(0 * one, 0 * one, 0.5 * one, 0 * one, torch.tensor([[[1.0, 0.0]]]), one)
    frames = render(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), layers, pose)
    expected = torch.zeros(16, 16)
    expected[4:12, 4:12] = 255
    inner = frames[0, 0, 0].float()
    assert torch.equal(inner[5:11, 5:11], expected[5:11, 5:11])
    assert torch.equal(inner[:3], expected[:3]) and torch.equal(inner[13:], expected[13:])
    assert not frames[0, 1].any()  # the sprite of the second frame is transparent


def test_scene_bank_depends_only_on_the_seed() -> None:
    bank = scene_bank(2, seed=5)
    assert bank.shape[:3] == (len(SCENES), 2, 3)
    assert torch.equal(bank, scene_bank.__wrapped__(2, seed=5))  # without the cache
    assert not torch.equal(bank[0, 0], bank[0, 1])


def test_crops_are_parts_of_the_backgrounds_sometimes_mirrored() -> None:
    bank = torch.randint(0, 256, (2, 3, 3, 9, 9), dtype=torch.uint8)
    scene = torch.tensor([0, 1, 1, 0] * 8)
    crops = crop_backgrounds(bank, scene, 6, torch.Generator().manual_seed(3))
    num_mirrored = 0
    for crop, index in zip(crops, scene.tolist(), strict=True):
        pieces = bank[index].unfold(2, 6, 1).unfold(3, 6, 1)  # [3, 3, 4, 4, 6, 6]
        pieces = pieces.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 6, 6)
        is_plain, is_mirrored = ((pieces == piece).flatten(1).all(dim=1).any() for piece in (crop, crop.flip(-1)))
        assert is_plain or is_mirrored
        num_mirrored += int(is_mirrored)
    assert 4 < num_mirrored < 28


def test_a_canvas_larger_than_the_backgrounds_shows_the_same_videos(tmp_path: Path) -> None:
    world = World(tmp_path, canvas=224, sheet=tiny_sheet())
    sample = world.videos(2, 2, world.generator(0))
    assert sample.frames.shape == (2, 2, 3, 224, 224)
    small = World(tmp_path, canvas=96, sheet=tiny_sheet()).videos(2, 2, world.generator(0))
    assert torch.equal(sample.targets, small.targets)
    shrunk = torch.nn.functional.interpolate(sample.frames.flatten(0, 1).float(), size=(96, 96), mode="area")
    assert (shrunk - small.frames.flatten(0, 1).float()).abs().mean() < 6


def test_write_mp4_stores_every_frame(tmp_path: Path) -> None:
    import av

    frames = torch.zeros(6, 3, 48, 48, dtype=torch.uint8)
    frames[3:, 0] = 250
    path = tmp_path / "v.mp4"
    write_mp4(frames, path, fps=12, size=64)
    with av.open(str(path)) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(pictures) == 6 and pictures[0].shape == (64, 64, 3)
    assert pictures[0].mean() < 5 and pictures[5][..., 0].mean() > 230


def test_nouns_are_built_from_the_category_tree() -> None:
    def row(name: str, sub: str, order: int, has_image: bool = True) -> dict[str, object]:
        image = f"{order}.png"
        return {"name": name, "subcategory": sub, "sort_order": order, "image": image, "has_img_a": has_image}

    rows = [
        row("DOG FACE", "animal-mammal", 2),
        row("DOG", "animal-mammal", 1),
        row("SLICE OF PIZZA", "food-prepared", 3),
        row("PAW PRINTS", "animal-mammal", 4),
        row("GRINNING FACE", "face-smiling", 5),
        row("WOMAN FARMER", "person-role", 7),
        row("FARMER", "person-role", 8),
        row("CAT", "animal-mammal", 6, has_image=False),
    ]
    nouns = build_nouns(rows, ["a"])
    assert [(n.name, n.images) for n in nouns] == [
        ("dog", ("1.png", "2.png")),
        ("farmer", ("7.png", "8.png")),
        ("paw prints", ("4.png",)),
        ("pizza", ("3.png",)),
    ]
    assert nouns[0].hypernyms == ("animal", "mammal")
    with pytest.raises(ValueError, match="no usable emoji"):
        build_nouns(rows[4:5], ["a"])


def _package(folder: Path) -> ArtPackage:
    """A tarball in the format of the real packages, with one dog of 72 pixels."""
    picture = io.BytesIO()
    Image.fromarray(np.full((72, 72, 4), 200, np.uint8)).save(picture, "PNG")
    entry = {"name": "DOG", "subcategory": "animal-mammal", "sort_order": 1, "image": "d.png", "has_img_google": True}
    with tarfile.open(folder / "art-1.0.tgz", "w:gz") as archive:
        for name, data in (("emoji.json", json.dumps([entry]).encode()), ("img/google/64/d.png", picture.getvalue())):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    import hashlib

    digest = hashlib.sha256((folder / "art-1.0.tgz").read_bytes()).hexdigest()
    return ArtPackage("google", "art", "1.0", digest, "test", "none")


def test_sprites_are_read_from_the_tarball(tmp_path: Path) -> None:
    sheet = load_sheet(tmp_path, [_package(tmp_path)], vectors=None, keywords=None)
    assert [n.name for n in sheet.nouns] == ["dog"]
    assert sheet.sprites.shape == (1, 1, 4, 64, 64) and (sheet.sprites == 200).all()


def test_art_with_another_checksum_is_rejected(tmp_path: Path) -> None:
    package = _package(tmp_path)
    (tmp_path / "art-1.0.tgz").write_bytes(b"changed")
    with pytest.raises(ArtError, match="delete it"):
        fetch_package(package, tmp_path)


def test_keywords_are_plain_new_words() -> None:
    words = ["puppy", "dog", "dogs", "animal", "love", "pet", "dog face", "C3PO", "puppy", "x" * 30, "guide dog"]
    assert filter_keywords(words, known=frozenset({"dog", "animal"})) == ("puppy", "pet", "guide dog")
    assert emoji_characters("1f468-200d-1f33e.png") == "\U0001f468\u200d\U0001f33e"
    common = {f"noun {i}": ["everywhere", f"word {i}"] for i in range(20)}
    assert drop_common_keywords(common)["noun 3"] == ("word 3",)


def many_nouns() -> list[Noun]:
    """200 nouns of made-up syllables, each with two keywords."""
    names = [
        f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("ram", "lop", "tix", "zun", "vok", "mip", "hab", "cud")
    ]
    return [Noun(name, ("thing",), (f"{name}.png",), (f"{name}ish", f"old{name}")) for name in names]


def test_unseen_texts_are_in_no_training_text() -> None:
    protocol = Protocol(many_nouns())
    training = protocol.training_texts()
    training_words = {word for text in training for word in text.split()}
    assert 5 < len(protocol.unseen_nouns) < 60 and len(protocol.unseen_keywords) > 30
    unseen = protocol.unseen_texts()
    fine_tuning = set(protocol.column("seen").labels)
    for texts in unseen.values():
        assert not set(texts) & fine_tuning
    for kind in ("keywords", "actions"):  # no word in common
        assert not {word for text in unseen[kind] for word in text.split()} & training_words
    for kind in ("words for scenes", "words for actions"):  # the text is new, and has a new word
        for text in unseen[kind]:
            assert text not in training and set(text.split()) - training_words, text
    for pair in unseen["pairs"]:
        assert pair not in training


def test_columns_show_their_nouns_actions_pairs_and_styles(tmp_path: Path) -> None:
    nouns = tuple(many_nouns())
    tiny = tiny_sheet()
    owner = torch.arange(len(nouns))
    sprites = tiny.sprites[:, :1].expand(2, len(nouns), 4, 64, 64)
    sheet = SpriteSheet(nouns, ("one", "openmoji"), sprites, owner)
    protocol = Protocol(nouns)
    index = {noun.name: i for i, noun in enumerate(nouns)}
    unseen_nouns = {index[name] for name in protocol.unseen_nouns}
    held_out = {ACTIONS.index(name) for name in HELD_OUT_ACTIONS}
    rare = {(index[noun], ACTIONS.index(action)) for noun, action in protocol.rare_pairs}
    shown = {}
    for part in ("pretrain", *COLUMNS):
        world = World(tmp_path, canvas=32, part=part, split="test", sheet=sheet)
        sample = world.videos(600, 1, world.generator(0))
        pairs = set(zip(sample.nouns.flatten().tolist(), sample.actions.flatten().tolist(), strict=True))
        shown[part] = {n for n, _ in pairs}, {a for _, a in pairs}, pairs
        assert sample.targets.any(dim=0).float().mean() > 0.5
        bright = sample.frames[..., 0, :, :].amax(dim=(-1, -2)).float()
        assert bright.shape == (600, 1)
        assert world.styles.tolist() == ([1] if part == "unseen_style" else [0])
    assert not shown["seen"][0] & unseen_nouns and not shown["seen"][1] & held_out and not shown["seen"][2] & rare
    assert shown["unseen_words"][0] & unseen_nouns and shown["pretrain"][0] & unseen_nouns
    assert shown["unseen_actions"][1] >= held_out and not shown["unseen_actions"][0] & unseen_nouns
    assert len(shown["rare_pairs"][2] & rare) > len(rare) / 2
    assert not set(SCENE_WORDS["beach"][1]) & set(protocol.column("seen").labels)
    assert noun_name("MAN FARMER") == "farmer" and noun_name("COW FACE") == "cow"


def test_the_noun_of_a_pair_begins_its_label(tmp_path: Path) -> None:
    world = World(tmp_path, canvas=32, sheet=tiny_sheet(), num_more_pairs=5)
    nouns, kinds = world.pair_nouns().tolist(), world.kinds()
    for label, noun in zip(world.labels, nouns, strict=True):
        assert (noun >= 0) == (kinds[label] == "pair")
        assert noun < 0 or label.startswith(world.protocol.nouns[noun].name + " ")
    assert sum(noun >= 0 for noun in nouns) > 5


def test_more_pairs_add_labels_to_the_same_videos(tmp_path: Path) -> None:
    nouns = tuple(many_nouns())
    tiny = tiny_sheet()
    sheet = SpriteSheet(
        nouns, ("one",), tiny.sprites[:1, :1].expand(1, len(nouns), 4, 64, 64), torch.arange(len(nouns))
    )
    plain = World(tmp_path, canvas=16, sheet=sheet)
    protocol = plain.protocol
    num = 10_000  # more than exist
    pairs = protocol.more_pairs(num)
    count = len(protocol.seen_nouns) * len(protocol.trained_actions)
    assert len(pairs) == len(set(pairs)) == count - len(protocol.train_pairs) - len(protocol.rare_pairs)
    assert not set(pairs) & {*protocol.train_pairs, *protocol.rare_pairs}
    assert pairs[:30] == protocol.more_pairs(30)
    assert set(protocol.training_texts(30)) - set(protocol.training_texts()) == {" ".join(pair) for pair in pairs[:30]}
    more = World(tmp_path, canvas=16, num_more_pairs=num, sheet=sheet)
    assert more.labels == (*plain.labels, *(" ".join(pair) for pair in pairs))
    assert {more.kinds()[label] for label in more.labels[len(plain.labels) :]} == {"pair"}

    old, new = (world.videos(200, 1, world.generator(3)) for world in (plain, more))
    assert torch.equal(old.frames, new.frames) and torch.equal(old.targets, new.targets[:, : len(plain.labels)])
    for i, row in enumerate(new.targets):
        new_labels = {label for label, true in zip(more.labels, row.tolist(), strict=True) if true} - set(plain.labels)
        shown_pairs = zip(new.nouns[i].tolist(), new.actions[i].tolist(), strict=True)
        shown = {(nouns[n].name, ACTIONS[a]) for n, a in shown_pairs if a >= 0}
        assert new_labels == {" ".join(pair) for pair in shown - set(protocol.train_pairs)}
    for world, sample in ((plain, old), (more, new)):
        assert torch.equal(world.video_targets(200, world.generator(3)), sample.targets)
