"""Encrypted videos are refused by name. Decoded without the key, their frames are noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.video_cases import assert_like_ffmpeg, refusal
from support.video_cases_files import Clips
from support.video_cases_mkv import encrypted
from support.video_cases_ts import scrambled

KEY = (
    ("encryption_scheme", "cenc-aes-ctr"),
    ("encryption_key", "0123456789abcdef0123456789abcdef"),
    ("encryption_kid", "fedcba9876543210fedcba9876543210"),
)
FRAGMENTED = (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)


def assert_refused(path: Path) -> None:
    for num_frames in (1, 8):
        error = refusal(path, num_frames=num_frames)
        assert "encrypted" in str(error)
        assert error.code == "unsupported_media"


@pytest.mark.parametrize("muxer", [KEY, KEY + FRAGMENTED], ids=["plain", "fragmented"])
@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_mp4(clips: Clips, suffix: str, sound: bool, muxer: tuple[tuple[str, str], ...]) -> None:
    assert_refused(clips.clip(suffix, seconds=2, sound=sound, muxer=muxer))


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mkv"), ("libvpx", ".webm"), ("libvpx-vp9", ".webm")])
@pytest.mark.parametrize("with_key_id", [True, False])
def test_matroska(clips: Clips, codec: str, suffix: str, with_key_id: bool) -> None:
    source = clips.clip(suffix, codec=codec, seconds=2)
    assert_refused(encrypted(source, clips.path(suffix), with_key_id=with_key_id))


@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_transport_stream(clips: Clips, codec: str, headers: bool) -> None:
    source = clips.clip(".ts", codec=codec, seconds=4, gop=25, sound=True)
    assert_refused(scrambled(source, clips.path(".ts"), headers=headers))


def test_a_transport_stream_of_which_only_the_sound_is_scrambled(clips: Clips) -> None:
    source = clips.clip(".ts", seconds=2, sound=True)
    assert_like_ffmpeg(scrambled(source, clips.path(".ts"), headers=True, first_pid=257))
