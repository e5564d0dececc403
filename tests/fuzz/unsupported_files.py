"""Files that are no videos, and videos of kinds that are not read."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import av

from fuzz.answers import UNDECODABLE, UNSUPPORTED, Answer
from fuzz.forged_headers import playlist
from fuzz.writing import encode_tone, write

_PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489")


def not_videos(target_url: str, target_path: Path) -> Iterator[tuple[str, bytes, Answer]]:
    yield "empty.mp4", b"", UNDECODABLE
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("video.mp4", bytes(1_000_000))
    concat = f"ffconcat version 1.0\nfile '{target_path}'\nfile '{target_url}'\n".encode()
    texts = {
        "one byte": b"\0",
        "zeros": bytes(10_000),
        "text": b"this is not a video\n" * 100,
        "html": b"<!doctype html><script>alert(1)</script>" * 10,
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{target_url}"/></svg>'.encode(),
        "png": _PNG + bytes(1000),
        "zip": packed.getvalue(),
        "gzip": gzip.compress(bytes(1_000_000)),
        "pdf": b"%PDF-1.7\n" + bytes(1000),
        "elf": b"\x7fELF" + bytes(1000),
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR." * 10,
        "playlist of a file": playlist(f"file://{target_path}"),
        "playlist of a bare path": playlist(str(target_path)),
        "playlist of an address": playlist(target_url),
        "playlist by concat": playlist(f"concat:{target_path}|{target_url}"),
        "playlist by subfile": playlist(f"subfile,,start,0,end,64,,:{target_path}"),
        "playlist of a key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{target_url}"\n#EXTINF:1,\na.ts\n'.encode(),
        "playlist after a byte order mark": b"\xef\xbb\xbf" + playlist(target_url),
        "concat script": concat,
        "dash": f"<MPD><Period><BaseURL>{target_url}</BaseURL></Period></MPD>".encode(),
        "sdp": b"v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "image sequence": f"{target_path}%d.png".encode(),
        "subtitles": b"1\n00:00:00,000 --> 00:00:09,000\n{\\an8}file\n",
        "y4m": b"YUV4MPEG2 W64 H64 F25:1 Ip A1:1\nFRAME\n" + bytes(6144),
        "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(100),
    }
    for name, data in texts.items():
        yield f"{name}.mp4", data, UNSUPPORTED


def wrong_codecs(folder: Path) -> Iterator[tuple[str, bytes, Answer]]:
    """Accepted containers with unsupported codecs, and unsupported containers."""
    for codec, suffix, pix_fmt in (
        ("huffyuv", "avi", "yuv422p"),
        ("utvideo", "avi", "yuv422p"),
        ("rawvideo", "avi", "yuv420p"),
        ("zmbv", "avi", "bgr0"),
        ("msvideo1", "avi", "rgb555le"),
        ("flashsv", "flv", "bgr24"),
        ("snow", "mkv", "yuv420p"),
        ("jpeg2000", "mov", "rgb24"),
        ("rpza", "mov", "rgb555le"),
        ("rv20", "rm", "yuv420p"),
        ("mpeg2video", "mxf", "yuv420p"),
        ("ffv1", "nut", "yuv420p"),
        ("libvpx", "ivf", "yuv420p"),
        ("libx264", "h264", "yuv420p"),
    ):
        path = folder / f"{codec}.{suffix}"
        yield f"{codec}.{suffix}.mp4", write(path, codec, pix_fmt=pix_fmt, rate=25), UNSUPPORTED
    many = write(folder / "many.mkv", "mjpeg", pix_fmt="yuvj420p", num_streams=40, num_frames=2)
    yield "forty streams.mkv", many, UNSUPPORTED
    with av.open(str(folder / "audio.mp4"), "w") as container:
        encode_tone(container, container.add_stream("aac", rate=16000))
    yield "audio only.mp4", (folder / "audio.mp4").read_bytes(), UNDECODABLE
