from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vidlex.model.camera_work.fit import (
    Examples,
    MotionFitConfig,
    calibrate,
    fit_motion_branch,
    macro_aupr,
    masked_loss,
    predict,
)
from vidlex.model.camera_work.labels import COLUMN, MOTION_KEYS, MOTION_LABELS, REVERSED_KEYS
from vidlex.model.camera_work.map_cache import read_map_caches, write_map_cache
from vidlex.model.camera_work.photos import PhotoBank, draw, read_photos
from vidlex.model.camera_work.random_scenes import SceneConfig, SourceSize, random_scene
from vidlex.model.camera_work.render import Material, make_source, render
from vidlex.model.camera_work.run import CameraWorkConfig, train_camera_work
from vidlex.model.camera_work.scene import Scene, integrate_centre
from vidlex.model.camera_work.truth import label_scene
from vidlex.model.video.motion_branch import MotionBranch, MotionBranchConfig, load_motion_branch, save_motion_branch

SIZE = 64
TINY = MotionBranchConfig(
    len(MOTION_KEYS), channels=3, grid=16, width=32, heads=2, num_layers=1, match_width=8, look_width=4, field_width=16
)


def photo(seed: int, height: int = 160, width: int = 240) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def bank() -> PhotoBank:
    return PhotoBank(tuple(photo(seed) for seed in range(4)), ())


def still_scene(num_frames: int = 4) -> Scene:
    """One shot of a 240 x 160 source, a window of 64 pixels at its middle, no movement."""
    t = num_frames
    return Scene(
        shot=np.zeros(t, np.int64),
        other_shot=np.zeros(t, np.int64),
        blend=np.zeros(t),
        camera=np.zeros((1, t, 4)),
        centre=np.broadcast_to((120.0, 80.0), (1, t, 2)).copy(),
        log_width=np.full((1, t), np.log(SIZE)),
        shake=np.zeros((t, 3)),
        blur_length=np.zeros((t, 2)),
        gain=np.ones(t),
        flash=np.zeros(t),
        defocus=np.zeros(t),
        objects=np.zeros((0, t, 4)),
        object_shot=np.zeros(0, np.int64),
        noise_std=np.zeros(t),
        seed=np.arange(t),
        moment=np.arange(t),
    )


def moved(camera: np.ndarray) -> Scene:
    scene = still_scene(len(camera))
    log_width = scene.log_width[0] - camera[:, 2]
    centre = integrate_centre(camera, log_width, np.array((120.0, 80.0)))
    return replace(scene, camera=camera[None], log_width=log_width[None], centre=centre[None])


def present(scene: Scene) -> set[str]:
    truth = label_scene(scene)
    return {key for key in MOTION_KEYS if truth.present[COLUMN[key]] and truth.known[COLUMN[key]]}


def photos(*pictures: np.ndarray) -> Material:
    return Material([make_source(picture[None]) for picture in pictures], [])


def test_a_still_scene_shows_the_window_of_the_photo() -> None:
    frames = render(still_scene(), photos(photo(0)), SIZE)
    assert (frames == photo(0)[80 - 32 : 80 + 32, 120 - 32 : 120 + 32]).all()
    assert present(still_scene()) == {"static_shot"}


@pytest.mark.parametrize(
    ("axis", "amount", "expected", "shift"),
    [(0, 0.25, "pan_right", (0, 16)), (0, -0.25, "pan_left", (0, -16)), (1, 0.25, "tilt_down", (16, 0))],
)
def test_a_move_shows_another_window(axis: int, amount: float, expected: str, shift: tuple[int, int]) -> None:
    camera = np.zeros((2, 4))
    camera[1, axis] = amount
    scene = moved(camera)
    frames = render(scene, photos(photo(1)), SIZE)
    y, x = 48 + shift[0], 88 + shift[1]
    assert (frames[1] == photo(1)[y : y + SIZE, x : x + SIZE]).all()
    assert expected in present(scene)


def test_a_clockwise_quarter_turn() -> None:
    camera = np.zeros((2, 4))
    camera[1, 3] = np.pi / 2
    frames = render(moved(camera), photos(photo(2)), SIZE)
    difference = frames[1].astype(int) - np.rot90(frames[0], -1)  # -1: clockwise
    assert np.abs(difference).max() <= 1
    assert "rotation_clockwise" in present(moved(camera))


def test_zoom_doubles_the_content() -> None:
    camera = np.zeros((2, 4))
    camera[1, 2] = np.log(2)
    scene = moved(camera)
    frames = render(scene, photos(photo(3)), SIZE)
    middle = np.asarray(Image.fromarray(frames[0][16:48, 16:48]).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    inner = np.abs(frames[1].astype(int) - middle)[4:-4, 4:-4]
    assert inner.mean() < 2
    assert present(scene) == {"zoom_in", "zooming", "moving_camera", "slow_movement"}


def test_a_reversed_scene_shows_the_frames_backwards_and_has_the_opposite_labels() -> None:
    num_reversed = 0
    for seed in range(40):
        scene, material = draw(np.random.default_rng(seed), bank(), SceneConfig(num_frames=6))
        if seed < 4:
            frames = render(scene, material, SIZE)
            assert (render(scene.reversed(), material, SIZE) == frames[::-1]).all()
        truth, back = label_scene(scene), label_scene(scene.reversed())
        for key in MOTION_KEYS:
            here, there = COLUMN[key], COLUMN[REVERSED_KEYS.get(key, key)]
            assert truth.present[here] == back.present[there], (seed, key)
            assert truth.known[here] == back.known[there], (seed, key)
            num_reversed += int(truth.present[here]) * (here != there)
    assert num_reversed > 10


def test_scenes_and_frames_follow_from_the_seed() -> None:
    def once(seed: int) -> np.ndarray:
        scene, material = draw(np.random.default_rng(seed), bank(), SceneConfig(num_frames=4))
        return render(scene, material, 32)

    assert (once(7) == once(7)).all()
    assert not (once(7) == once(8)).all()


def test_windows_can_be_kept_inside_the_source() -> None:
    sizes = [SourceSize(400, 300)] * 2
    for seed in range(10):
        scene = random_scene(np.random.default_rng(seed), sizes, 1, SceneConfig(num_frames=6, keep_inside=True))
        half = np.exp(scene.log_width[0]) / 2
        assert (scene.centre[0, :, 0] - half > -1).all()
        assert (scene.centre[0, :, 0] + half < 401).all()


def test_every_label_occurs_and_has_wordings() -> None:
    seen: set[str] = set()
    sizes = [SourceSize(640, 480)] * 4
    for seed in range(700):
        seen |= present(random_scene(np.random.default_rng(seed), sizes, 3, SceneConfig()))
    assert seen == set(MOTION_KEYS)
    texts = [text for label in MOTION_LABELS for text in label.wordings + label.held_out]
    assert len(texts) == len(set(texts))
    assert all(len(label.wordings) >= 5 and len(label.held_out) == 2 for label in MOTION_LABELS)


def test_a_cut_is_not_a_dissolve() -> None:
    scene = still_scene(4)
    two = {name: np.repeat(getattr(scene, name), 2, axis=0) for name in ("camera", "centre", "log_width")}
    shot = np.array((0, 0, 1, 1))
    cut = replace(scene, shot=shot, other_shot=shot, **two)
    assert present(cut) == {"cut", "static_shot"}
    dissolve = replace(cut, other_shot=1 - shot, blend=np.array((0.0, 0.4, 0.4, 0.0)))
    assert present(dissolve) == {"dissolve", "static_shot"}
    a, b = (render(still_scene(1), photos(photo(seed)), SIZE)[0].astype(int) for seed in (0, 1))
    frames = render(dissolve, photos(photo(0), photo(1)), SIZE)
    assert np.abs(frames[1] - (0.6 * a + 0.4 * b)).max() <= 1
    assert (frames[3] == b).all()


@pytest.mark.parametrize("num_frames", [1, 2, 4, 8, 16])
def test_the_branch_takes_any_number_of_frames(num_frames: int) -> None:
    branch = MotionBranch(TINY).eval()
    branch.neutral -= 1.5
    scores = branch(torch.randn(3, num_frames, 3, 16, 16))
    assert scores.shape == (3, len(MOTION_KEYS))
    assert scores.abs().max() <= TINY.max_score
    assert (scores == -1.5).all() == (num_frames == 1)


def test_local_correlations_and_displacements_follow_the_content() -> None:
    torch.manual_seed(0)
    branch = MotionBranch(replace(TINY, channels=24, match_width=24)).eval()
    with torch.no_grad():
        branch.sharpness.fill_(6.0)
        first = torch.randn(1, 24, 16, 16)
        second = torch.roll(first, (0, 2), (2, 3))  # moves two cells to the right
        fields = branch.fields(torch.stack((first, second), dim=1), [(0, 1)])[0, 0]
    radius, side = TINY.max_shift, 2 * TINY.max_shift + 1
    assert fields.shape == (side * side + 3 + 2 * TINY.look_width, 8, 8)
    best = fields[: side * side, 2:6, 2:5].flatten(1).mean(1).argmax()
    assert divmod(int(best), side) == (radius, radius + 2)
    right, down = fields[side * side : side * side + 2, 2:6, 2:5] * 16 / 4
    assert torch.allclose(right.median(), torch.tensor(2.0), atol=0.1)
    assert torch.allclose(down.median(), torch.tensor(0.0), atol=0.1)


def test_weights_and_config_survive_the_disk(tmp_path: Path) -> None:
    branch = MotionBranch(TINY).eval()
    save_motion_branch(branch, tmp_path / "motion.safetensors", torch.float32)
    loaded = load_motion_branch(MotionBranchConfig.from_json(TINY.to_json()), tmp_path / "motion.safetensors")
    maps = torch.randn(2, 5, 3, 16, 16)
    assert torch.equal(loaded(maps), branch(maps))


def encode(frames: np.ndarray) -> np.ndarray:
    """Mean colours of 16 x 16 cells: a tower without weights."""
    t, size = frames.shape[:2]
    cells = frames.reshape(t, 16, size // 16, 16, size // 16, 3).mean((2, 4)) / 255
    return np.ascontiguousarray(cells.transpose(0, 3, 1, 2)).astype(np.float32)


def test_training_on_a_cache_learns_and_calibrates(tmp_path: Path) -> None:
    config = SceneConfig(num_frames=6)
    write_map_cache(tmp_path / "a", bank(), encode, num_scenes=24, seed=1, image_size=32, config=config)
    examples = Examples(read_map_caches([tmp_path / "a"]))
    whole = examples.fixed(num_frames=6)
    before = MotionBranch(TINY)
    fit = MotionFitConfig(num_steps=60, batch_size=16, warmup_steps=5, learning_rate=3e-3)
    losses: list[float] = []
    branch = fit_motion_branch(examples, fit, TINY, progress=lambda step, loss, branch: losses.append(loss))
    logits, there, known = predict(branch, whole)
    assert len(losses) == 60
    assert masked_loss(torch.from_numpy(logits), whole[0]) < 0.6 * masked_loss(before.logits(whole[0].maps), whole[0])
    assert macro_aupr(logits, there, known) > 2 * there[known].mean()
    rows = calibrate(branch, whole)
    scores = branch(whole[0].maps).detach()
    assert scores.mean(0).abs().max() < 0.3
    for row, neutral in zip(rows, branch.neutral, strict=True):
        assert 1 / (1 + np.exp(-(row.scale * float(neutral) + row.bias))) == pytest.approx(row.prior, abs=1e-4)
    single = branch(whole[0].maps[:, :1])
    assert (single == branch.neutral.clamp_max(-1)).all(), "a single frame claims no motion"


def test_a_cache_follows_from_its_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_map_cache(
            tmp_path / name, bank(), encode, num_scenes=2, seed=3, image_size=32, config=SceneConfig(num_frames=3)
        )
    first, second = read_map_caches([tmp_path / "a", tmp_path / "b"])
    assert (first.maps == second.maps).all()
    assert (first.scenes[1].camera == second.scenes[1].camera).all()


def test_photos_are_divided_by_the_manifest(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(9)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((8, 8, 4), (i, 0, 0, 255), np.uint8)).save(tmp_path / name)
    (tmp_path / "manifest.jsonl").write_text("".join(f'{{"file": "{name}", "licence": "CC0"}}\n' for name in names))
    train, held_out = (read_photos(tmp_path, tmp_path, is_held_out=value) for value in (False, True))
    assert [int(p[0, 0, 0]) for p in held_out.photos] == [6]
    assert [int(p[0, 0, 0]) for p in train.photos] == [0, 1, 2, 3, 4, 5, 7, 8]
    assert train.objects[0].shape[2] == 4


def test_the_whole_training_writes_a_branch_that_loads(tmp_path: Path) -> None:
    for name, mode in (("photos", slice(3)), ("objects", slice(4))):
        (tmp_path / name).mkdir()
        for i in range(8):
            picture = np.concatenate((photo(i), np.full((160, 240, 1), 255, np.uint8)), axis=2)[..., mode]
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
        lines = "".join(f'{{"file": "{i}.png"}}\n' for i in range(8))
        (tmp_path / name / "manifest.jsonl").write_text(lines)
    config = CameraWorkConfig(
        num_scenes=6, num_held_out_scenes=6, num_frames=3, scenes=SceneConfig(num_frames=3), fit=MotionFitConfig(2, 4)
    )
    stages: set[str] = set()
    out = tmp_path / "out"
    metrics = train_camera_work(
        tmp_path / "photos",
        tmp_path / "objects",
        out,
        config,
        encode=encode,
        image_size=32,
        progress=lambda stage, done, total: stages.add(stage),
    )
    assert stages == {"train", "held_out", "fit"}
    assert 0 < metrics["held_out_macro_aupr"] <= 1
    stored = json.loads((out / "motion.json").read_text())
    branch = load_motion_branch(MotionBranchConfig.from_json(stored["config"]), out / "motion.safetensors")
    assert [row["key"] for row in stored["labels"]] == list(MOTION_KEYS)
    assert branch(torch.rand(1, 3, 3, 16, 16)).shape == (1, len(MOTION_KEYS))
