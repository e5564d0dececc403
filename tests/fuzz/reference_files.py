"""Videos that refer to other files and addresses, which a decoder must not open."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from fuzz.answers import OK, UNDECODABLE
from fuzz.broken_files import mp4_box
from fuzz.forged_headers import find_box, playlist
from fuzz.gif_files import GifFrame, gif_file
from fuzz.webp_files import WebpFrame, animated_webp, webp_chunk
from fuzz.writing import FPS, HEIGHT, NUM_FRAMES, WIDTH, gradient, write


def reference_files(folder: Path, base: bytes, target_url: str, target_path: Path) -> Iterator[tuple[Any, ...]]:
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
            frame = av.VideoFrame.from_ndarray(gradient(number, WIDTH, HEIGHT), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    yield "tags.mkv", tagged.read_bytes(), OK

    yield "a movie elsewhere.mov", _movie_elsewhere(target_url), UNDECODABLE
    yield from _scripts(folder, target_url, target_path)


def write_movie_with_reference(folder: Path, target_path: Path) -> Path:
    """A movie whose pictures are said to be in the file at ``target_path``."""
    base = write(folder / "reference.mov")
    path = folder / "with reference.mov"
    path.write_bytes(_with_reference(base, b"alis", _alias(target_path)))
    return path


def _movie_elsewhere(target_url: str) -> bytes:
    reference = mp4_box(
        b"rdrf", bytes(4) + b"url " + struct.pack(">I", len(target_url) + 1) + target_url.encode() + b"\0"
    )
    return mp4_box(b"ftyp", b"qt  " + bytes(8)) + mp4_box(b"moov", mp4_box(b"rmra", mp4_box(b"rmda", reference)))


def _scripts(folder: Path, target_url: str, target_path: Path) -> Iterator[tuple[Any, ...]]:
    """Commands, pictures and names by address, which players of these formats follow or once did."""
    asf = write(folder / "script.wmv", "wmv2", container_format="asf", rate=25)
    yield "script of addresses.wmv", _with_script_commands(asf, target_url), OK
    flv = write(folder / "script.flv", "flv", rate=25)
    yield "script of addresses.flv", _with_script_tag(flv, target_url), OK
    picture = (
        struct.pack(">II", 3, 3) + b"-->" + bytes(4 + 16) + struct.pack(">I", len(target_url)) + target_url.encode()
    )
    tags = {"METADATA_BLOCK_PICTURE": base64.b64encode(picture).decode(), "filename": str(target_path)}
    ogg = write(folder / "tags.ogv", "libvpx", container_format="ogg", rate=25, tags=tags)
    yield "picture by address.ogv", ogg, OK
    comment = playlist(target_url) + f"\nfile '{target_path}'".encode()
    palette = np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[:, None], 3, axis=1)
    frames = [GifFrame(np.full((HEIGHT, WIDTH), k, np.uint8)) for k in range(8)]
    yield "playlist in a comment.gif", gif_file(WIDTH, HEIGHT, palette, frames, comment=comment), OK
    pixels = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
    xmp = webp_chunk(b"XMP ", f'<x:xmpmeta xmlns:x="{target_url}"><a href="{target_url}"/></x:xmpmeta>'.encode())
    yield "metadata by address.webp", animated_webp(WIDTH, HEIGHT, [WebpFrame(pixels)] * 3, extra=xmp), OK


_SCRIPT_COMMAND = bytes.fromhex("301afb1e620bd011a39b00a0c90348f6")


def _with_script_commands(asf: bytes, target_url: str) -> bytes:
    """The header's own size and number of objects are corrected."""
    url = target_url.encode("utf-16-le")
    kinds = struct.pack("<H", 3) + "URL".encode("utf-16-le")
    command = struct.pack("<IHH", 0, 0, len(url) // 2) + url
    content = bytes(16) + struct.pack("<HH", 1, 1) + kinds + command
    item = _SCRIPT_COMMAND + struct.pack("<Q", 24 + len(content)) + content
    size, count = struct.unpack_from("<QI", asf, 16)
    return asf[:16] + struct.pack("<QI", size + len(item), count + 1) + asf[28:size] + item + asf[size:]


def _with_script_tag(flv: bytes, target_url: str) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack(">H", len(value)) + value.encode()

    content = (
        b"\2"
        + text("onCuePoint")
        + b"\x08"
        + struct.pack(">I", 1)
        + text("url")
        + b"\2"
        + text(target_url)
        + b"\0\0\x09"
    )
    tag = b"\x12" + len(content).to_bytes(3, "big") + bytes(7) + content
    return flv[:13] + tag + struct.pack(">I", len(tag)) + flv[13:]


def _with_reference(base: bytes, kind: bytes, payload: bytes) -> bytes:
    start, end = find_box(base, 0, len(base), b"moov")
    entry = mp4_box(kind, bytes(4) + payload)  # flags 0: the data is not in this file
    new = _replaced(base[start:end], [b"trak", b"mdia", b"minf", b"dinf", b"dref"], struct.pack(">II", 0, 1) + entry)
    return base[:start] + new + base[end:]


def _replaced(box: bytes, path: list[bytes], payload: bytes) -> bytes:
    if not path:
        return mp4_box(box[4:8], payload)
    start, end = find_box(box, 8, len(box), path[0])
    new = box[:start] + _replaced(box[start:end], path[1:], payload) + box[end:]
    return struct.pack(">I", len(new)) + new[4:]


def _alias(path: Path) -> bytes:
    """A classic Mac alias record whose absolute path (tag 2) is ``path``: the one that FFmpeg would open."""
    text = str(path).encode()
    head = bytes(4) + struct.pack(">HH", 0, 2) + bytes(142)
    tail = struct.pack(">HH", 2, len(text)) + text + bytes(len(text) % 2) + struct.pack(">HH", 0xFFFF, 0)
    record = head + tail
    return record[:4] + struct.pack(">H", len(record)) + record[6:]


def _avi_with_subtitles(subtitles: bytes) -> bytes:
    """Motion JPEG with a subtitle stream, which FFmpeg passes to another demuxer that may open addresses."""
    from PIL import Image

    picture = io.BytesIO()
    Image.fromarray(gradient(3, WIDTH, HEIGHT)).save(picture, "JPEG")
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
