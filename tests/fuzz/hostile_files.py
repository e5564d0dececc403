"""Video files from untrusted clients, with the set of allowed answers to each.

Several answers are allowed where the result depends on the version of FFmpeg.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from fuzz.forged_headers import claim_duration, find_box, playlist, write_claimed_size

Answer = tuple[int, str]  # status and code; the code of a 200 is empty

OK: Answer = (200, "")
UNSUPPORTED: Answer = (415, "unsupported_media")
UNDECODABLE: Answer = (422, "undecodable_video")
TOO_LONG: Answer = (422, "video_too_long")
TOO_LARGE: Answer = (422, "resolution_too_large")
ANY_ANSWER = frozenset((OK, UNSUPPORTED, UNDECODABLE, TOO_LONG, TOO_LARGE))

REFERENCE = "valid.mp4"  # valid; its scores are compared before and after

WIDTH, HEIGHT, FPS, NUM_FRAMES = 96, 64, 10, 20


@dataclass(frozen=True)
class HostileFile:
    name: str  # file name in the multipart form
    data: bytes
    allowed: frozenset[Answer]


def build(folder: Path, target_url: str, target_path: Path) -> list[HostileFile]:
    """All files; ``folder`` is scratch space. Attacks refer to ``target_url`` and ``target_path``."""
    found = []
    for name, data in _valid(folder):
        found.append(HostileFile(name, data, frozenset([OK])))
    base = (folder / REFERENCE).read_bytes()
    for name, data, *allowed in (
        *_not_videos(target_url, target_path),
        *_wrong_codecs(folder),
        *_forged(folder),
        *_broken(base),
        *_references(folder, base, target_url, target_path),
    ):
        found.append(HostileFile(name, data, frozenset(allowed)))
    return found


_CODEC_OPTIONS = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"x265-params": "log-level=none"},
    "libsvtav1": {"preset": "10"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}


def write(
    path: Path,
    codec: str = "libx264",
    *,
    pix_fmt: str = "yuv420p",
    width: int = WIDTH,
    height: int = HEIGHT,
    num_frames: int = NUM_FRAMES,
    rate: int = FPS,
    rotation: int = 0,
    has_audio: bool = False,
    times: Callable[[int], int] | None = None,
    num_streams: int = 1,
    attach: bytes | None = None,
    options: dict[str, str] | None = None,
    container_format: str | None = None,
) -> bytes:
    """Write a short video of a moving gradient. ``times`` maps a frame number to milliseconds."""
    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        streams: list[Any] = []
        for _ in range(num_streams):
            stream: Any = container.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.thread_type = "NONE"
            stream.options = dict(_CODEC_OPTIONS.get(codec, {}))
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000 if times else rate)
            streams.append(stream)
        if rotation:
            streams[0].set_display_rotation(rotation)
        audio: Any = container.add_stream("aac", rate=16000) if has_audio else None
        if attach is not None:
            container.add_attachment("font.ttf", "application/x-truetype-font", attach)
        for number in range(num_frames):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(_picture(number, width, height), format="rgb24")
                frame.time_base = stream.codec_context.time_base
                frame.pts = times(number) if times else number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
        if audio is not None:
            _encode_tone(container, audio)
    return path.read_bytes()


def _picture(number: int, width: int, height: int) -> Any:
    columns = (np.arange(width) * 255 // width + number * 8) % 256
    picture = np.empty((height, width, 3), np.uint8)
    picture[..., 0] = columns
    picture[..., 1] = (np.arange(height) * 255 // height)[:, None]
    picture[..., 2] = number * 12 % 256
    return picture


def _encode_tone(container: Any, stream: Any) -> None:
    for start in range(0, 16000, 1024):
        samples = (np.sin(np.arange(start, start + 1024) * 0.05) * 8000).astype(np.int16)
        chunk = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        chunk.sample_rate, chunk.pts = 16000, start
        container.mux(stream.encode(chunk))
    container.mux(stream.encode())


# --- valid files ---------------------------------------------------------------------------------------------------


def _valid(folder: Path) -> Iterator[tuple[str, bytes]]:
    yield REFERENCE, write(folder / REFERENCE, has_audio=True)
    yield "../../etc/passwd", write(folder / "path.mp4", options={"movflags": "faststart"})
    yield "fragmented.mp4", write(folder / "f.mp4", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
    yield "a\r\nX-Evil: 1.mkv", write(folder / "a.mkv", has_audio=True)
    yield "attachment.mkv", write(folder / "b.mkv", attach=b"#EXTM3U\n" * 100)
    yield "three streams.mkv", write(folder / "c.mkv", num_streams=3)
    yield "a.mov", write(folder / "a.mov", "prores_ks", pix_fmt="yuv422p10le")
    yield "a.avi", write(folder / "a.avi", "mpeg4")
    yield "motion jpeg.avi", write(folder / "j.avi", "mjpeg", pix_fmt="yuvj420p")
    yield "a.ts", write(folder / "a.ts", has_audio=True)
    yield "a.m2ts", write(folder / "a.m2ts", options={"mpegts_m2ts_mode": "1"}, container_format="mpegts")
    yield "mpeg2.ts", write(folder / "b.ts", "mpeg2video", rate=25)
    yield "a.3gp", write(folder / "a.3gp", "h263", width=176, height=144)
    yield "odd size.mkv", write(folder / "odd.mkv", pix_fmt="yuv444p", width=97, height=61)
    yield "10 bit.mp4", write(folder / "10.mp4", pix_fmt="yuv420p10le")
    yield "rotated.mp4", write(folder / "rotated.mp4", rotation=90)
    yield "one frame.mp4", write(folder / "one.mp4", num_frames=1)
    yield "variable rate.mkv", write(folder / "vfr.mkv", times=lambda i: i * i * 17)
    yield "movie.gif", write(folder / "named.gif", container_format="mp4")  # the suffix does not match the content
    yield "vp9.webm", write(folder / "vp9.webm", "libvpx-vp9")
    yield "av1.mp4", write(folder / "av1.mp4", "libsvtav1")
    yield "hevc.mp4", write(folder / "hevc.mp4", "libx265")


# --- other files and unsupported formats ---------------------------------------------------------------------------

_PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489")


def _not_videos(target_url: str, target_path: Path) -> Iterator[tuple[str, bytes, Answer]]:
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
        "gif": b"GIF89a" + bytes(1000),
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


def _wrong_codecs(folder: Path) -> Iterator[tuple[str, bytes, Answer]]:
    """Accepted containers with unsupported codecs, and unsupported containers."""
    for codec, suffix, pix_fmt in (
        ("ffv1", "mkv", "yuv420p"),
        ("qtrle", "mov", "rgb24"),
        ("png", "mov", "rgb24"),
        ("huffyuv", "avi", "yuv422p"),
        ("rawvideo", "avi", "yuv420p"),
        ("flv", "flv", "yuv420p"),
        ("wmv2", "asf", "yuv420p"),
        ("libvpx", "ogv", "yuv420p"),
        ("gif", "gif", "rgb8"),
        ("mpeg2video", "mpg", "yuv420p"),
    ):
        path = folder / f"{codec}.{suffix}"
        yield f"{codec}.{suffix}.mp4", write(path, codec, pix_fmt=pix_fmt, rate=25), UNSUPPORTED
    many = write(folder / "many.mkv", "mjpeg", pix_fmt="yuvj420p", num_streams=40, num_frames=2)
    yield "forty streams.mkv", many, UNSUPPORTED
    with av.open(str(folder / "audio.mp4"), "w") as container:
        _encode_tone(container, container.add_stream("aac", rate=16000))
    yield "audio only.mp4", (folder / "audio.mp4").read_bytes(), UNDECODABLE


# --- forged headers ------------------------------------------------------------------------------------------------


def _forged(folder: Path) -> Iterator[tuple[Any, ...]]:
    plain = folder / "plain.mp4"
    write(plain)
    for name, width, height, in_container in (
        ("claims 20000x20000.mp4", 20_000, 20_000, True),
        ("stream header claims 16000x16000.mp4", 16_000, 16_000, False),
        ("claims 16x16000.mp4", 16, 16_000, True),
    ):
        target = write_claimed_size(plain, folder / "forged.mp4", width=width, height=height, in_container=in_container)
        yield name, target.read_bytes(), TOO_LARGE
    write(folder / "short.mkv")
    forged = claim_duration(folder / "short.mkv", folder / "forged.mkv", seconds=1e9)
    yield "claims 1e9 seconds.mkv", forged.read_bytes(), TOO_LONG
    yield "1e6 frames per second.mp4", write(folder / "fast.mp4", rate=1_000_000, num_frames=40), UNDECODABLE
    wide = write(folder / "wide.mp4", "mpeg4", width=8000, height=200, num_frames=2)
    yield "a wide strip.mp4", wide, TOO_LARGE


# --- broken --------------------------------------------------------------------------------------------------------


def _box(kind: bytes, payload: bytes = b"", *, size: int | None = None) -> bytes:
    return struct.pack(">I", len(payload) + 8 if size is None else size) + kind + payload


def _broken(base: bytes) -> Iterator[tuple[Any, ...]]:
    moov, moov_end = find_box(base, 0, len(base), b"moov")
    yield "moov is missing.mp4", base[:moov], UNDECODABLE
    yield "half of moov.mp4", base[: (moov + moov_end) // 2], OK, UNDECODABLE  # the missing half describes the audio
    yield "moov only.mp4", base[:32] + base[moov:moov_end], UNDECODABLE
    yield "half of the data.mp4", base[: moov // 2] + base[moov:moov_end], OK, UNDECODABLE
    yield "header only.mp4", base[:12], UNDECODABLE
    yield "playlist after a header.mp4", base[:32] + b"#EXTM3U\nfile:///etc/passwd\n", UNDECODABLE
    nested = b""
    for _ in range(2000):
        nested = _box(b"trak" if len(nested) % 16 else b"moov", nested)
    yield "nested two thousand deep.mp4", base[:32] + _box(b"moov", nested), UNDECODABLE
    yield "a box of 2^63 bytes.mp4", base[:32] + struct.pack(">I4sQ", 1, b"moov", 2**63 - 1) + base, OK, UNDECODABLE
    yield "a box of no bytes.mp4", base[:32] + _box(b"moov", base, size=0), OK, UNDECODABLE
    yield "a box smaller than its header.mp4", base[:32] + _box(b"moov", base, size=3), OK, UNDECODABLE
    for table in (b"stsz", b"stts", b"stsc", b"stco"):
        yield f"{table.decode()} of 2^31 entries.mp4", _patched(base, table, 8, b"\x7f\xff\xff\xff"), *ANY_ANSWER
    yield "no time scale.mp4", _patched(base, b"mdhd", 16, bytes(4)), *ANY_ANSWER
    yield "zeroed codec.mp4", base.replace(b"avc1", bytes(4)), UNSUPPORTED, UNDECODABLE
    yield "wrong codec.mp4", base.replace(b"avc1", b"hev1"), UNSUPPORTED, UNDECODABLE
    yield "empty mkv.mkv", b"\x1a\x45\xdf\xa3" + b"\xff" * 500, UNDECODABLE
    yield "empty avi.avi", b"RIFF\xff\xff\xff\xffAVI LIST" + bytes(500), UNDECODABLE
    yield "empty ts.ts", (b"\x47" + bytes(187)) * 50, UNDECODABLE


def _patched(data: bytes, kind: bytes, offset: int, value: bytes) -> bytes:
    """``data`` with ``value`` at ``offset`` bytes after the type of the first box of that kind."""
    place = data.index(kind) + 4 + offset
    return data[:place] + value + data[place + len(value) :]


# --- references to other files and addresses -----------------------------------------------------------------------


def _references(folder: Path, base: bytes, target_url: str, target_path: Path) -> Iterator[tuple[Any, ...]]:
    for name, kind, target in (
        ("external data by url.mp4", b"url ", target_url.encode() + b"\0"),
        ("external data by path.mp4", b"url ", b"file://" + str(target_path).encode() + b"\0"),
        ("external data by alias.mov", b"alis", _alias(target_path)),
    ):
        # moov is at the end of the file, so a data reference of another size moves no media data
        yield name, _with_reference(base, kind, target), OK, UNDECODABLE
    for target in (playlist(target_url), f"ffconcat version 1.0\nfile '{target_path}'\n".encode()):
        yield "subtitles in an avi.avi", _avi_with_subtitles(target), OK, UNDECODABLE
    tagged = folder / "tagged.mkv"
    with av.open(str(tagged), "w") as container:
        container.metadata.update({"title": target_url, "filename": str(target_path), "DURATION": "99:99:99.999"})
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(_picture(number, WIDTH, HEIGHT), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    yield "tags.mkv", tagged.read_bytes(), OK


def _with_reference(base: bytes, kind: bytes, payload: bytes) -> bytes:
    start, end = find_box(base, 0, len(base), b"moov")
    entry = _box(kind, bytes(4) + payload)  # flags 0: the data is not in this file
    new = _replaced(base[start:end], [b"trak", b"mdia", b"minf", b"dinf", b"dref"], struct.pack(">II", 0, 1) + entry)
    return base[:start] + new + base[end:]


def _replaced(box: bytes, path: list[bytes], payload: bytes) -> bytes:
    if not path:
        return _box(box[4:8], payload)
    start, end = find_box(box, 8, len(box), path[0])
    new = box[:start] + _replaced(box[start:end], path[1:], payload) + box[end:]
    return struct.pack(">I", len(new)) + new[4:]


def _alias(path: Path) -> bytes:
    """A classic Mac alias record whose POSIX path (tag 18) is ``path``."""
    text = str(path).encode()
    head = bytes(4) + struct.pack(">HH", 0, 2) + bytes(142)
    tail = struct.pack(">HH", 18, len(text)) + text + bytes(len(text) % 2) + struct.pack(">HH", 0xFFFF, 0)
    record = head + tail
    return record[:4] + struct.pack(">H", len(record)) + record[6:]


def _avi_with_subtitles(subtitles: bytes) -> bytes:
    """Motion JPEG with a subtitle stream, which FFmpeg passes to another demuxer that may open addresses."""
    from PIL import Image

    picture = io.BytesIO()
    Image.fromarray(_picture(3, WIDTH, HEIGHT)).save(picture, "JPEG")
    jpeg = picture.getvalue() + bytes(len(picture.getvalue()) % 2)

    def chunk(kind: bytes, payload: bytes) -> bytes:
        return kind + struct.pack("<I", len(payload)) + payload + bytes(len(payload) % 2)

    def stream_header(kind: bytes, handler: bytes, length: int) -> bytes:
        numbers = (0, 0, 0, 1, 10, 0, length, 0, 0xFFFFFFFF, 0, 0, 0)
        return chunk(b"strh", kind + handler + struct.pack("<12I", *numbers))

    name = "en".encode("utf-16-le") + bytes(2)
    text = b"GAB2\0" + struct.pack("<HI", 2, len(name)) + name + struct.pack("<HI", 4, len(subtitles)) + subtitles
    picture_format = struct.pack("<IiiHH4sIiiII", 40, WIDTH, HEIGHT, 1, 24, b"MJPG", len(jpeg), 0, 0, 0, 0)
    main = struct.pack("<14I", 100_000, 0, 0, 0x10, 10, 0, 2, 0, WIDTH, HEIGHT, 0, 0, 0, 0)
    video_list = chunk(b"LIST", b"strl" + stream_header(b"vids", b"MJPG", 10) + chunk(b"strf", picture_format))
    text_list = chunk(b"LIST", b"strl" + stream_header(b"txts", bytes(4), 1) + chunk(b"strf", b""))
    header = chunk(b"LIST", b"hdrl" + chunk(b"avih", main) + video_list + text_list)
    movie = chunk(b"LIST", b"movi" + chunk(b"01tx", text) + chunk(b"00dc", jpeg) * 10)
    return chunk(b"RIFF", b"AVI " + header + movie)
