"""Real files through the decoder: ordinary, awkward and hostile. Every frame says which one it is."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from support import videos
from vidlex.model.decode.decoder import decode_frames
from vidlex.model.decode.framing import fit_square, scaled_size
from vidlex.model.decode.limits import DecodeError, DecodeLimits
from vidlex.model.decode.probe import probe, read_header
from vidlex.model.decode.sniff import demuxer_for
from vidlex.model.types import FrameBatch, FrameGeometry
from vidlex.service.bench.header_lies import claim_duration, playlist, write_claimed_size

SQUARE = FrameGeometry(96)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the well-formed files that several tests read."""
    folder = tmp_path_factory.mktemp("shelf")
    videos.write_video(folder / "plain.mp4", options={"preset": "medium"})
    faststart = {"movflags": "faststart"}
    videos.write_video(folder / "faststart.mp4", num_frames=200, gop=50, container_options=faststart)
    return folder


def decode(path: Path, num_frames: int = 5, geometry: FrameGeometry = SQUARE, **job: object) -> FrameBatch:
    return decode_frames(path, geometry=geometry, num_frames=num_frames, **job)  # type: ignore[arg-type]


def numbers(batch: FrameBatch) -> list[int]:
    return [videos.read_number(frame) for frame in batch.frames]


def refusal(path: Path, **job: object) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(path, **job)  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.endswith(".")
    assert not re.search(r"0x[0-9a-f]{6}|Error|/\w+/", text), "nothing native in what a stranger reads"
    return caught.value


# --- ordinary files ----------------------------------------------------------------------------------------------

KINDS = [
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


@pytest.mark.parametrize(("name", "options"), KINDS, ids=[name for name, _ in KINDS])
def test_every_supported_kind(tmp_path: Path, name: str, options: dict) -> None:
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


def test_the_window(shelf: Path) -> None:
    assert numbers(decode(shelf / "plain.mp4", 2, start_ms=1000, end_ms=2000)) == [12, 17]
    assert numbers(decode(shelf / "plain.mp4", 2, end_ms=400)) == [1, 3]
    assert numbers(decode(shelf / "plain.mp4", 2, start_ms=2600, end_ms=99_000)) == [27, 29]
    one_second = decode(shelf / "plain.mp4", 12, start_ms=1000, end_ms=2000)
    assert numbers(one_second) == [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 19, 19]
    assert one_second.timestamps_ms[-3:] == (1900, 1900, 1900)


def test_keyframes(shelf: Path) -> None:
    with av.open(str(shelf / "faststart.mp4")) as container:
        truth = [round(f.time * 10) for f in container.decode(video=0) if f.key_frame]
    got = numbers(decode(shelf / "faststart.mp4", len(truth), policy="keyframes"))
    assert got == truth
    assert len(truth) >= 4


def test_every_frame_once(shelf: Path) -> None:
    assert numbers(decode(shelf / "plain.mp4", 30)) == list(range(30))


def test_times_that_make_no_sense(tmp_path: Path) -> None:
    """Two streams one behind the other, as capture cards cut them: every time stamp occurs twice."""
    parts = [videos.write_video(tmp_path / f"{k}.ts", num_frames=20, width=w) for k, w in enumerate((160, 96))]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    batch = decode(path, 8)
    assert batch.frames.shape == (8, 96, 96, 3)
    assert set(numbers(batch)) <= set(range(20))


def test_frames_that_refer_across_a_keyframe_are_the_right_ones(tmp_path: Path) -> None:
    """x265's default; decord alone gives frame 24 for 21, 22 and 23 here."""
    if not videos.has_encoder("libx265"):
        pytest.skip("this build of FFmpeg cannot write it")
    path = videos.write_video(tmp_path / "o.mp4", codec="libx265", options={"x265-params": "log-level=none"})
    index = read_header(path, DecodeLimits(), with_index=True).index
    assert index is not None and not index.is_simple
    assert numbers(decode(path, 30)) == list(range(30))
    for start in range(0, 3000, 100):
        assert numbers(decode(path, 1, start_ms=start, end_ms=start + 100)) == [start // 100]


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(shelf: Path, threads: int) -> None:
    one, other = decode(shelf / "plain.mp4"), decode(shelf / "plain.mp4", num_threads=threads)
    assert (one.frames == other.frames).all()


def test_one_frame(tmp_path: Path) -> None:
    batch = decode(videos.write_video(tmp_path / "one.mp4", num_frames=1, picture=None), 4)
    assert numbers(batch) == [0, 0, 0, 0]
    assert batch.timestamps_ms == (0, 0, 0, 0)
    assert batch.video.num_frames == 1


@pytest.mark.parametrize("first_ms", [0, 500])
def test_variable_frame_rate_follows_time(tmp_path: Path, first_ms: int) -> None:
    """Also when the first picture does not come at time 0: times count from it."""
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
    info = probe(path)
    assert (info.width, info.height, info.codec) == (*upright, "h264")


def test_sound_longer_than_the_picture_is_not_a_cut_file(tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "s.mkv", num_frames=20, audio_seconds=6.0)
    # without the tag that tells the picture's own length, as many writers leave it out
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"XXXXXXXX"))
    batch = decode(path, 4)
    assert numbers(batch) == [2, 7, 12, 17]
    assert abs(batch.video.duration_ms - 2000) <= 1


# --- the model's square ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize(("width", "height"), [(160, 96), (96, 160), (130, 130), (250, 60)])
@pytest.mark.parametrize("size", [32, 96, 70])
def test_pictures_look_as_open_clip_would_show_them(
    tmp_path: Path, mode: str, width: int, height: int, size: int
) -> None:
    """Against open_clip's own preprocessing of the full picture. 32 and 96 are widths that decord itself gets wrong."""
    transform_module = pytest.importorskip("open_clip.transform")
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / width * 9), np.cos(y / height * 7), np.sin((x + y) / (width + height) * 11)]
    picture = (128 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)
    path = tmp_path / "wave.mp4"
    videos.write_video(path, width=width, height=height, num_frames=2, picture=lambda _: picture, pix_fmt="yuv444p")
    got = decode(path, 1, FrameGeometry(size, mode)).frames[0]  # type: ignore[arg-type]
    transform = transform_module.image_transform(
        size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, fill_color=0
    )
    expected = transform(Image.fromarray(picture)).permute(1, 2, 0).numpy() * 255
    difference = np.abs(got.astype(float) - expected)
    assert difference.mean() < 4
    # black bars exactly where open_clip has them
    assert ((expected == 0).all(-1) == (got < 12).all(-1)).mean() > 0.97


def test_scaled_size_by_hand() -> None:
    assert scaled_size(FrameGeometry(224), 1280, 720) == (398, 224)
    assert scaled_size(FrameGeometry(224), 720, 1280) == (224, 398)
    assert scaled_size(FrameGeometry(224, "longest"), 1280, 720) == (224, 126)
    assert scaled_size(FrameGeometry(224, "squash"), 1280, 720) == (224, 224)
    assert scaled_size(FrameGeometry(96, "longest"), 8000, 2) == (96, 1)


def test_fit_square_pads_with_black() -> None:
    out = np.full((6, 6, 3), 9, np.uint8)
    fit_square(np.full((2, 6, 3), 200, np.uint8), out)
    assert out[:, 0, 0].tolist() == [0, 0, 200, 200, 0, 0]


# --- files that are not what they say ----------------------------------------------------------------------------


def test_text_and_empty_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("This is not a video. " * 100)
    assert refusal(tmp_path / "a.mp4").code == "unsupported_media"
    (tmp_path / "b.mp4").write_bytes(b"")
    error = refusal(tmp_path / "b.mp4")
    assert (error.code, str(error)) == ("undecodable_video", "The file is empty.")
    assert refusal(tmp_path).code == "unsupported_media"
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "none.mp4")


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert refusal(tmp_path / "pipe.mp4").code == "unsupported_media"


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ts"])
def test_playlists_reach_nobody(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        url = f"http://127.0.0.1:{canary.getsockname()[1]}/x.ts"
        for content in (
            *map(playlist, (url, "file:///etc/passwd")),
            f"ffconcat version 1.0\nfile {url}\n".encode(),
            f"v=0\nc=IN IP4 127.0.0.1\nm=video {canary.getsockname()[1]} RTP/AVP 96\n".encode(),
            f"<MPD><BaseURL>{url}</BaseURL></MPD>".encode(),
        ):
            (tmp_path / name).write_bytes(content)
            assert refusal(tmp_path / name).code == "unsupported_media"
        with pytest.raises(BlockingIOError):
            canary.accept()


def test_a_playlist_dressed_as_a_box_opens_with_the_mp4_demuxer(tmp_path: Path) -> None:
    """A file that both demuxers would take is never left to FFmpeg's own guess."""
    for head in (b"#EXTM3U\n", b"ffconcat", b"    ftyp<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'>"):
        assert demuxer_for(head + b"\nftypisom" * 8) is None


def test_audio_only(tmp_path: Path) -> None:
    error = refusal(videos.write_audio_only(tmp_path / "a.mp4"))
    assert (error.code, str(error)) == ("undecodable_video", "The file has no video stream.")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_file_whose_index_was_cut_off(shelf: Path, tmp_path: Path, keep: float) -> None:
    assert refusal(videos.cut(shelf / "plain.mp4", tmp_path / "c.mp4", keep)).code == "undecodable_video"


def test_a_cut_file_is_decoded_as_far_as_it_goes(shelf: Path, tmp_path: Path) -> None:
    """20 s, of which the first part is there: a window inside it works, the whole is refused and says why."""
    path = videos.cut(shelf / "faststart.mp4", tmp_path / "c.mp4", 0.6)
    batch = decode(path, 4, end_ms=4000)
    assert numbers(batch) == [5, 15, 25, 35]
    assert batch.video.duration_ms == 20_000
    error = refusal(path)
    assert error.code == "undecodable_video"
    assert "incomplete: it should last 20000 ms, but its data ends after" in str(error)


def test_a_cut_stream_without_index_is_shorter(tmp_path: Path) -> None:
    """A transport stream has no claim to break: what is there is the video."""
    path = videos.cut(videos.write_video(tmp_path / "a.ts"), tmp_path / "c.ts", 0.5)
    batch = decode(path, 3)
    assert numbers(batch) == sorted(numbers(batch))
    assert 1000 <= batch.video.duration_ms <= 2000


def test_flipped_bits_never_raise_anything_else(shelf: Path, tmp_path: Path) -> None:
    seen = set()
    for seed in range(20):
        path = videos.flip_bits(shelf / "plain.mp4", tmp_path / "f.mp4", seed=seed, num_flips=1 + seed % 7)
        try:
            assert decode(path).frames.shape == (5, 96, 96, 3)
            seen.add("decoded")
        except DecodeError as error:
            seen.add(error.code)
    assert {"decoded", "undecodable_video"} <= seen


# --- bombs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box_too", [True, False])
@pytest.mark.parametrize("side", [12_000, 16_000, 20_000])
def test_huge_pictures_are_refused_unseen(tmp_path: Path, side: int, box_too: bool) -> None:
    path = tmp_path / "h.mp4"
    small = videos.write_video(tmp_path / "small.mp4")
    write_claimed_size(small, path, width=side, height=side, box_too=box_too)
    error = refusal(path)
    if side == 20_000 and not box_too:  # FFmpeg itself refuses the header and does not tell the size
        assert error.code == "undecodable_video"
    else:
        assert error.code == "resolution_too_large"
        assert f"{side}x{side}" in str(error)


LIMITED = [
    (DecodeLimits(max_side=159), "resolution_too_large", "160x96"),
    (DecodeLimits(max_pixels=160 * 96 - 1), "resolution_too_large", "160x96"),
    (DecodeLimits(max_aspect_ratio=1.5), "resolution_too_large", "1.5 times"),
    (DecodeLimits(max_duration_ms=2900), "video_too_long", "2.9 s"),
    (DecodeLimits(max_file_frames=29), "video_too_long", "30 frames"),
    (DecodeLimits(max_bytes=1000), "video_too_long", "1000"),
    (DecodeLimits(max_fps=9.9), "undecodable_video", "frames per second"),
    (DecodeLimits(max_frames=4), "invalid_parameter", "between 1 and 4"),
    (DecodeLimits(max_streams=0), "unsupported_media", "1 streams"),
]


@pytest.mark.parametrize(("limits", "code", "words"), LIMITED, ids=[words for _, _, words in LIMITED])
def test_each_limit(shelf: Path, limits: DecodeLimits, code: str, words: str) -> None:
    error = refusal(shelf / "plain.mp4", limits=limits)
    assert error.code == code
    assert words in str(error)


def test_limits_are_inclusive(shelf: Path) -> None:
    limits = DecodeLimits(
        max_side=160, max_pixels=160 * 96, max_duration_ms=3000, max_file_frames=30, max_fps=10, max_frames=5
    )
    assert numbers(decode(shelf / "plain.mp4", limits=limits)) == [3, 9, 15, 21, 27]


def test_a_duration_that_is_a_lie(tmp_path: Path) -> None:
    video = videos.write_video(tmp_path / "v.mkv")
    long = claim_duration(video, tmp_path / "l.mkv", seconds=1e9)
    assert refusal(long).code == "video_too_long"
    lie = claim_duration(video, tmp_path / "s.mkv", seconds=600)
    assert refusal(lie).code == "undecodable_video"
    assert numbers(decode(lie, 2, end_ms=2000)) == [5, 15]
    short = claim_duration(video, tmp_path / "t.mkv", seconds=1)
    assert numbers(decode(short)) == [3, 9, 15, 21, 27], "the frames count, not the claim"


def test_a_frame_that_stands_for_hours(tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "d.mp4", num_frames=3, pts_ms=[0, 100, 11_000_000])
    assert refusal(path).code == "video_too_long"


def test_a_million_frames_a_second(tmp_path: Path) -> None:
    path = videos.write_video(tmp_path / "f.mp4", fps=100_000, num_frames=30)
    error = refusal(path)
    assert error.code == "undecodable_video"
    assert "frames per second" in str(error)


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
def test_parameters(shelf: Path, job: dict, words: str) -> None:
    error = refusal(shelf / "plain.mp4", **job)
    assert error.code == "invalid_parameter"
    assert words in str(error)


def test_no_torch_and_no_cuda_libraries() -> None:
    """A decode process must stay small: some 50 MB, where torch or decord's own start take hundreds."""
    code = (
        "import sys, vidlex.model.decode.decoder, vidlex.model.decode.readers as r; "
        "assert 'decord' not in sys.modules; "
        "r.load_decord(); assert 'torch' not in sys.modules; "
        "maps = open('/proc/self/maps').read(); assert 'libdecord' in maps; assert 'cublas' not in maps"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
