"""Ordinary, unusual and hostile files through the decoder. Every test frame shows its own number."""

from __future__ import annotations

import io
import os
import re
import socket
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fuzz.forged_headers import claim_duration, playlist, write_claimed_size
from support import videos
from vidlex.model.decode.containers.sniff import demuxer_of
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.decode.framing import fit_square, scaled_size
from vidlex.model.decode.limits import DecodeError, DecodeLimits
from vidlex.model.decode.probe import read_header
from vidlex.model.types import FrameBatch, FrameGeometry

SQUARE = FrameGeometry(96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    videos.write_video(folder / "plain.mp4", options={"preset": "medium"})
    faststart = {"movflags": "faststart"}
    videos.write_video(folder / "faststart.mp4", num_frames=200, gop=50, container_options=faststart)
    return folder


def decode(path: Path, num_frames: int = 5, geometry: FrameGeometry = SQUARE, **job: object) -> FrameBatch:
    return decode_frames(path, geometry=geometry, num_frames=num_frames, **job)  # type: ignore[arg-type]


def numbers(batch: FrameBatch) -> list[int]:
    return [videos.read_number(frame) for frame in batch.frames]


def decode_error(path: Path, **job: object) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(path, **job)  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.endswith(".")
    assert not re.search(r"0x[0-9a-f]{6}|Error|\s/\w+/", text), "native error text in a public message"
    return caught.value


# --- ordinary files ----------------------------------------------------------------------------------------------

FORMATS = [
    ("h264.mp4", {}),
    ("h264.mov", {}),
    ("h264.mkv", {"audio_seconds": 3.0}),
    ("h264.ts", {}),
    ("vp9.webm", {"codec": "libvpx-vp9"}),
    ("open_gop.mp4", {"options": {"preset": "medium", "x264-params": "open-gop=1:bframes=3"}}),
    ("open_gop.ts", {"options": {"preset": "medium", "x264-params": "open-gop=1:bframes=3"}}),
    ("av1.mp4", {"codec": "libsvtav1"}),
    ("mpeg4.avi", {"codec": "mpeg4"}),
    ("mjpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    ("hevc10.mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}}),
    ("ten_bits.mp4", {"pix_fmt": "yuv420p10le"}),
    ("odd.mp4", {"width": 161, "height": 97, "pix_fmt": "yuv444p"}),
    ("faststart.mp4", {"container_options": {"movflags": "faststart"}}),
    ("fragmented.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
]


@pytest.mark.parametrize(("name", "options"), FORMATS, ids=[name for name, _ in FORMATS])
def test_supported_formats_give_the_expected_frames(tmp_path: Path, name: str, options: dict) -> None:
    if not videos.has_encoder(options.get("codec", "libx264")):
        pytest.skip("this build of FFmpeg cannot write it")
    batch = decode(videos.write_video(tmp_path / name, **options))
    assert numbers(batch) == [3, 9, 15, 21, 27]
    assert batch.timestamps_ms == (300, 900, 1500, 2100, 2700)
    assert batch.frames.shape == (5, 96, 96, 3)
    info = batch.video
    assert (info.num_frames, info.fps) == (30, 10.0)
    assert (info.width, info.height) == (options.get("width", 160), options.get("height", 96))
    assert abs(info.duration_ms - 3000) <= 1
    assert info.num_bytes == (tmp_path / name).stat().st_size


def test_only_frames_of_the_window_are_sampled(folder: Path) -> None:
    assert numbers(decode(folder / "plain.mp4", 2, start_ms=1000, end_ms=2000)) == [12, 17]
    assert numbers(decode(folder / "plain.mp4", 2, end_ms=400)) == [1, 3]
    assert numbers(decode(folder / "plain.mp4", 2, start_ms=2600, end_ms=99_000)) == [27, 29]
    one_second = decode(folder / "plain.mp4", 12, start_ms=1000, end_ms=2000)
    assert numbers(one_second) == [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 19, 19]
    assert one_second.timestamps_ms[-3:] == (1900, 1900, 1900)


def test_keyframe_policy_returns_keyframes(folder: Path) -> None:
    with av.open(str(folder / "faststart.mp4")) as container:
        expected = [round(f.time * 10) for f in container.decode(video=0) if f.key_frame]
    assert numbers(decode(folder / "faststart.mp4", len(expected), policy="keyframes")) == expected
    assert len(expected) >= 4


def test_every_frame_is_decoded_once(folder: Path) -> None:
    assert numbers(decode(folder / "plain.mp4", 30)) == list(range(30))


def test_a_clock_that_starts_again_goes_on(tmp_path: Path) -> None:
    """Two concatenated streams, as written by capture cards: every time stamp occurs twice."""
    parts = [videos.write_video(tmp_path / f"{k}.ts", num_frames=20, width=w) for k, w in enumerate((160, 96))]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    batch = decode(path, 8)
    assert numbers(batch) == [2, 7, 12, 17, 2, 7, 12, 17]
    assert batch.timestamps_ms == tuple(range(200, 4000, 500))
    assert (batch.video.num_frames, batch.video.duration_ms) == (40, 4000)


def test_references_across_a_keyframe_are_decoded_correctly(tmp_path: Path) -> None:
    """x265's default: open groups of pictures."""
    if not videos.has_encoder("libx265"):
        pytest.skip("this build of FFmpeg cannot write it")
    path = videos.write_video(tmp_path / "o.mp4", codec="libx265", options={"x265-params": "log-level=none"})
    assert read_header(path, DecodeLimits()).index is not None
    assert numbers(decode(path, 30)) == list(range(30))
    for start in range(0, 3000, 100):
        assert numbers(decode(path, 1, start_ms=start, end_ms=start + 100)) == [start // 100]


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_frames(folder: Path, threads: int) -> None:
    default, other = decode(folder / "plain.mp4"), decode(folder / "plain.mp4", num_threads=threads)
    assert (default.frames == other.frames).all()


def test_a_single_frame_is_repeated(tmp_path: Path) -> None:
    batch = decode(videos.write_video(tmp_path / "one.mp4", num_frames=1, picture=None), 4)
    assert numbers(batch) == [0, 0, 0, 0]
    assert batch.timestamps_ms == (0, 0, 0, 0)
    assert batch.video.num_frames == 1


@pytest.mark.parametrize("first_ms", [0, 500])
def test_sampling_of_a_variable_frame_rate_follows_time(tmp_path: Path, first_ms: int) -> None:
    """Times are relative to the first frame."""
    times = [0, 100, 150, 1000, 1010, 1020, 3000, 3500, 6000, 6100]
    path = videos.write_video(tmp_path / "v.mp4", num_frames=10, pts_ms=[first_ms + t for t in times])
    batch = decode(path, 6)
    expected = [max(i for i, t in enumerate(times) if t <= (2 * k + 1) * 6200 // 12) for k in range(6)]
    assert numbers(batch) == expected
    assert batch.timestamps_ms == tuple(times[i] for i in expected)
    assert batch.video.duration_ms == 6200


ROTATED = [(0, "rgbw"), (90, "gwrb"), (180, "wbgr"), (270, "brwg"), (-90, "brwg")]


@pytest.mark.parametrize(("rotation", "corners"), ROTATED)
@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_rotation_is_undone(tmp_path: Path, rotation: int, corners: str, mode: str) -> None:
    path = videos.write_corner_video(tmp_path / "r.mp4", rotation=rotation)
    batch = decode(path, 2, FrameGeometry(64, mode))  # type: ignore[arg-type]
    assert "".join(videos.corner_names(batch.frames[1])) == corners
    upright = (96, 160) if rotation % 180 else (160, 96)
    assert (batch.video.width, batch.video.height) == upright


def test_a_longer_audio_stream_does_not_count_as_truncation(tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "s.mkv", num_frames=20, audio_seconds=6.0)
    # without the tag for the video stream's duration, which many writers omit
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"XXXXXXXX"))
    batch = decode(path, 4)
    assert numbers(batch) == [2, 7, 12, 17]
    assert abs(batch.video.duration_ms - 2000) <= 1


# --- scaling and cropping ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize(("width", "height"), [(160, 96), (96, 160), (130, 130), (250, 60)])
@pytest.mark.parametrize("size", [32, 96, 70])
def test_pictures_match_open_clips_preprocessing(tmp_path: Path, mode: str, width: int, height: int, size: int) -> None:
    transform_module = pytest.importorskip("open_clip.transform")
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / width * 9), np.cos(y / height * 7), np.sin((x + y) / (width + height) * 11)]
    picture = (128 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)
    path = tmp_path / "wave.mp4"
    videos.write_video(path, width=width, height=height, num_frames=2, picture=lambda _: picture, pix_fmt="yuv444p")
    frame = decode(path, 1, FrameGeometry(size, mode)).frames[0]  # type: ignore[arg-type]
    transform = transform_module.image_transform(
        size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, fill_color=0
    )
    expected = transform(Image.fromarray(picture)).permute(1, 2, 0).numpy() * 255
    difference = np.abs(frame.astype(float) - expected)
    assert difference.mean() < 4
    # the black bars are at the same positions
    assert ((expected == 0).all(-1) == (frame < 12).all(-1)).mean() > 0.97


def test_scaled_size_matches_values_computed_by_hand() -> None:
    assert scaled_size(FrameGeometry(224), 1280, 720) == (398, 224)
    assert scaled_size(FrameGeometry(224), 720, 1280) == (224, 398)
    assert scaled_size(FrameGeometry(224, "longest"), 1280, 720) == (224, 126)
    assert scaled_size(FrameGeometry(224, "squash"), 1280, 720) == (224, 224)
    assert scaled_size(FrameGeometry(96, "longest"), 8000, 2) == (96, 1)


def test_fit_square_pads_with_black() -> None:
    out = np.full((6, 6, 3), 9, np.uint8)
    fit_square(np.full((2, 6, 3), 200, np.uint8), out)
    assert out[:, 0, 0].tolist() == [0, 0, 200, 200, 0, 0]


# --- invalid files -----------------------------------------------------------------------------------------------


def test_text_empty_and_missing_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("This is not a video. " * 100)
    assert decode_error(tmp_path / "a.mp4").code == "unsupported_media"
    (tmp_path / "b.mp4").write_bytes(b"")
    error = decode_error(tmp_path / "b.mp4")
    assert (error.code, str(error)) == ("undecodable_video", "The file is empty.")
    assert decode_error(tmp_path).code == "unsupported_media"
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "none.mp4")


def test_a_fifo_is_rejected_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert decode_error(tmp_path / "pipe.mp4").code == "unsupported_media"


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ts"])
def test_playlists_open_no_connection(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        for content in (
            *map(playlist, (url, "file:///etc/passwd")),
            f"ffconcat version 1.0\nfile {url}\n".encode(),
            f"v=0\nc=IN IP4 127.0.0.1\nm=video {server.getsockname()[1]} RTP/AVP 96\n".encode(),
            f"<MPD><BaseURL>{url}</BaseURL></MPD>".encode(),
        ):
            (tmp_path / name).write_bytes(content)
            assert decode_error(tmp_path / name).code == "unsupported_media"
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_playlist_with_mp4_boxes_is_not_detected_as_mp4() -> None:
    for head in (b"#EXTM3U\n", b"ffconcat", b"    ftyp<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'>"):
        assert demuxer_of(io.BytesIO(head + b"\nftypisom" * 8)) is None


def test_audio_only_files_are_rejected(tmp_path: Path) -> None:
    error = decode_error(videos.write_audio_only(tmp_path / "a.mp4"))
    assert (error.code, str(error)) == ("undecodable_video", "The file has no video stream.")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_file_with_a_truncated_index_is_rejected(folder: Path, tmp_path: Path, keep: float) -> None:
    assert decode_error(videos.truncate(folder / "plain.mp4", tmp_path / "c.mp4", keep)).code == "undecodable_video"


def test_a_truncated_file_is_decoded_up_to_its_end_with_a_warning(folder: Path, tmp_path: Path) -> None:
    path = videos.truncate(folder / "faststart.mp4", tmp_path / "c.mp4", 0.6)
    batch = decode(path, 4, end_ms=4000)
    assert numbers(batch) == [5, 15, 25, 35]
    whole = decode(path, 4)
    duration_ms = whole.video.duration_ms
    assert 8000 < duration_ms < 15_000
    assert numbers(whole) == [(2 * k + 1) * duration_ms // 800 for k in range(4)]
    ((code, sentence),) = whole.warnings
    assert code == "truncated_video"
    assert f"it should last 20000 ms, but its data ends after {duration_ms} ms" in sentence


def test_a_truncated_transport_stream_is_a_shorter_video(tmp_path: Path) -> None:
    """A transport stream claims no duration."""
    path = videos.truncate(videos.write_video(tmp_path / "a.ts"), tmp_path / "c.ts", 0.5)
    batch = decode(path, 3)
    assert numbers(batch) == sorted(numbers(batch))
    assert 1000 <= batch.video.duration_ms <= 2000


def test_flipped_bits_raise_only_decode_errors(folder: Path, tmp_path: Path) -> None:
    outcomes = set()
    for seed in range(20):
        path = videos.flip_bits(folder / "plain.mp4", tmp_path / "f.mp4", seed=seed, num_flips=1 + seed % 7)
        try:
            assert decode(path).frames.shape == (5, 96, 96, 3)
            outcomes.add("decoded")
        except DecodeError as error:
            outcomes.add(error.code)
    assert {"decoded", "undecodable_video"} <= outcomes


# --- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_container", [True, False])
@pytest.mark.parametrize("side", [12_000, 16_000, 20_000])
def test_huge_pictures_are_rejected_by_their_header(tmp_path: Path, side: int, in_container: bool) -> None:
    path = tmp_path / "h.mp4"
    small = videos.write_video(tmp_path / "small.mp4")
    write_claimed_size(small, path, width=side, height=side, in_container=in_container)
    error = decode_error(path)
    if side == 20_000 and not in_container:  # FFmpeg rejects the header without reporting the size
        assert error.code == "undecodable_video"
    else:
        assert error.code == "resolution_too_large"
        assert f"{side} x {side}" in str(error)


LIMITED = [
    (DecodeLimits(max_side=159), "resolution_too_large", "160 x 96"),
    (DecodeLimits(max_pixels=160 * 96 - 1), "resolution_too_large", "160 x 96"),
    (DecodeLimits(max_aspect_ratio=1.5), "resolution_too_large", "1.5 times"),
    (DecodeLimits(max_duration_ms=2900), "video_too_long", "2.9 s"),
    (DecodeLimits(max_file_frames=29), "video_too_long", "30 frames"),
    (DecodeLimits(max_bytes=1000), "video_too_long", "1000"),
    (DecodeLimits(max_frames=4), "invalid_parameter", "between 1 and 4"),
    (DecodeLimits(max_streams=0), "unsupported_media", "1 streams"),
]


@pytest.mark.parametrize(("limits", "code", "words"), LIMITED, ids=[words for _, _, words in LIMITED])
def test_every_limit_is_enforced(folder: Path, limits: DecodeLimits, code: str, words: str) -> None:
    error = decode_error(folder / "plain.mp4", limits=limits)
    assert error.code == code
    assert words in str(error)


def test_limits_are_inclusive(folder: Path) -> None:
    limits = DecodeLimits(max_side=160, max_pixels=160 * 96, max_duration_ms=3000, max_file_frames=30, max_frames=5)
    assert numbers(decode(folder / "plain.mp4", limits=limits)) == [3, 9, 15, 21, 27]


def test_false_durations(tmp_path: Path) -> None:
    video = videos.write_video(tmp_path / "v.mkv")
    impossible = decode(claim_duration(video, tmp_path / "l.mkv", seconds=1e9))
    assert numbers(impossible) == [3, 9, 15, 21, 27], "a claim beyond the limit has no effect"
    assert not impossible.warnings
    long = decode(claim_duration(video, tmp_path / "s.mkv", seconds=600))
    assert numbers(long) == [29] * 5, "the last frame stands"
    assert (long.video.duration_ms, long.warnings[0][0]) == (600_000, "still_end")
    short = claim_duration(video, tmp_path / "t.mkv", seconds=1)
    assert numbers(decode(short)) == [3, 9, 15, 21, 27], "a claim that is too short has no effect"


def test_a_frame_of_several_hours_is_rejected(tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "d.mp4", num_frames=3, pts_ms=[0, 100, 11_000_000])
    assert decode_error(path).code == "video_too_long"


def test_a_frame_rate_is_not_limited(tmp_path: Path) -> None:
    """It costs nothing: the number of frames is limited."""
    path = videos.write_video(tmp_path / "f.mp4", fps=100_000, num_frames=30)
    assert decode(path).video.fps == 100_000


BAD_JOBS = [
    ({"num_frames": 0}, "num_frames"),
    ({"num_frames": 10**9}, "num_frames"),
    ({"policy": "random"}, "policy"),
    ({"start_ms": -1}, "start_ms"),
    ({"start_ms": 500, "end_ms": 500}, "end_ms"),
    ({"end_ms": 0}, "end_ms"),
    ({"start_ms": 3000}, "3000 ms long"),
]


@pytest.mark.parametrize(("job", "words"), BAD_JOBS, ids=[str(job) for job, _ in BAD_JOBS])
def test_invalid_parameters_are_rejected(folder: Path, job: dict, words: str) -> None:
    error = decode_error(folder / "plain.mp4", **job)
    assert error.code == "invalid_parameter"
    assert words in str(error)
