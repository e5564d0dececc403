from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from support.videos import write_video
from vidlex.model.camera_work.evaluate import evaluate_camera_work
from vidlex.model.camera_work.labels import COLUMN, MOTION_LABELS
from vidlex.model.camera_work.windows import OBJECT_KEYS, draw_windows, read_real_videos
from vidlex.model.dummy import DummyClassifier

FADES = [label for label in MOTION_LABELS if label.key in ("fade_in", "fade_out")]


def picture(number: int) -> NDArray[np.uint8]:
    cells = np.random.default_rng(4).integers(60, 256, (12, 20, 3), dtype=np.uint8)
    still = np.asarray(Image.fromarray(cells).resize((320, 192), Image.Resampling.BICUBIC)).copy()
    still[80:110, 10 * number : 10 * number + 30] = 255  # something moves by itself
    return still


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name in ("a.mp4", "b.mp4"):
        write_video(folder / name, num_frames=20, fps=10, width=320, height=192, picture=picture)
    return folder


class FadeClassifier(DummyClassifier):
    """Compares the first and the last frame; knows the names of fades and reads other words the wrong way round."""

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        change = [float(f[-1].mean() - f[0].mean()) / 255 for f in frames]
        return np.array([(max(c, 0), max(-c, 0), 0) for c in change], np.float32)

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        rows = {"fade in": (1, 0, 0), "fade out": (0, 1, 0)}
        rows |= dict.fromkeys(FADES[0].held_out, (0, 1, 0)) | dict.fromkeys(FADES[1].held_out, (1, 0, 0))
        return np.array([rows[name] for name in names], np.float32)


def test_windows_show_what_they_are_drawn_for(folder: Path) -> None:
    videos = read_real_videos(folder)
    assert videos[0].frames.shape == (20, 192, 320, 3)
    keys = ("pan_left", "static_shot", "cut", "flash", "moving_left")
    windows = list(draw_windows(videos, num_windows=10, num_frames=4, image_size=48, keys=keys))
    again = list(draw_windows(videos, num_windows=10, num_frames=4, image_size=48, keys=keys))
    assert all((one.frames == two.frames).all() for one, two in zip(windows, again, strict=True))
    assert [window.sought for window in windows] == [*keys, *keys]
    for window in windows:
        column = COLUMN[window.sought]
        assert window.truth.present[column]
        assert window.truth.known[column]
        assert window.frames.shape == (4, 48, 48, 3)
    objects = [COLUMN[key] for key in OBJECT_KEYS]
    unknown = [window for window in windows if not window.truth.known[objects].any()]
    assert 0 < len(unknown) < 10  # videos that move themselves, and single frames of them


def test_evaluation_goes_through_names_alone(folder: Path) -> None:
    result = evaluate_camera_work(FadeClassifier(), folder, num_windows=40, num_frames=4, labels=FADES)
    assert result["num_windows"] == 40
    assert result["name"]["macro_aupr"] > 0.9
    for way in ("held_out_0", "held_out_1"):
        assert result[way]["macro_aupr"] < result[way]["macro_chance"]
    single = result["single_frame"]
    assert single["macro_aupr"] == pytest.approx(single["macro_chance"])  # one score for all
    assert [row["label"] for row in result["labels"]] == ["fade in", "fade out"]
    assert all(row["num_positives"] >= 20 for row in result["labels"])


def test_a_folder_without_videos_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no video"):
        read_real_videos(tmp_path)
