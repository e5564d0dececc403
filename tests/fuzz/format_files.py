"""A short valid file of each container and codec that is read.

Frame k of a written file shows the number k.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from PIL import Image

from fuzz.msmpeg4_files import write_msmpeg4v1
from fuzz.vc1_files import write_vc1
from support.videos import numbered_picture

SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class FileFormat:
    name: str  # of the file
    encoder: str
    codec: str  # `codec.canonical_name` of PyAV
    demuxer: str
    pix_fmt: str = "yuv420p"
    muxer: str | None = None  # by the file's suffix
    width: int = 96
    height: int = 64
    num_frames: int = 12
    rate: int | Fraction = 25
    options: tuple[tuple[str, str], ...] = ()
    muxer_options: tuple[tuple[str, str], ...] = ()

    @property
    def is_large(self) -> bool:
        """More than 100 KB a frame."""
        return self.codec == "dvvideo"


_NTSC = Fraction(30000, 1001)
_DV = {"width": 720, "height": 576, "num_frames": 3}

FORMATS = (
    FileFormat("a.gif", "gif", "gif", "gif", "rgb8", num_frames=10),
    FileFormat("mpeg1.mpg", "mpeg1video", "mpeg1video", "mpeg", muxer="mpeg"),
    FileFormat("mpeg2.vob", "mpeg2video", "mpeg2video", "mpeg", muxer="vob"),
    FileFormat("dvd.mpg", "mpeg2video", "mpeg2video", "mpeg", muxer="dvd"),
    FileFormat("h264.mpg", "libx264", "h264", "mpeg", muxer="vob"),
    FileFormat("a.m1v", "mpeg1video", "mpeg1video", "mpegvideo", muxer="mpeg1video"),
    FileFormat("a.m2v", "mpeg2video", "mpeg2video", "mpegvideo", muxer="mpeg2video"),
    FileFormat("b.m2v", "mpeg2video", "mpeg2video", "mpegvideo", muxer="mpeg2video", rate=50),
    FileFormat("flv1.flv", "flv", "flv1", "flv"),
    FileFormat("h264.flv", "libx264", "h264", "flv"),
    FileFormat("hevc.flv", "libx265", "hevc", "flv"),
    FileFormat("wmv1.wmv", "wmv1", "wmv1", "asf", muxer="asf"),
    FileFormat("wmv2.wmv", "wmv2", "wmv2", "asf", muxer="asf"),
    FileFormat("h264.asf", "libx264", "h264", "asf", muxer="asf"),
    FileFormat("msmpeg4v3.wmv", "msmpeg4", "msmpeg4v3", "asf", muxer="asf"),
    FileFormat("divx3.avi", "msmpeg4", "msmpeg4v3", "avi"),
    FileFormat("msmpeg4v2.avi", "msmpeg4v2", "msmpeg4v2", "avi"),
    FileFormat("cinepak.avi", "cinepak", "cinepak", "avi", "rgb24"),
    FileFormat("cinepak.mov", "cinepak", "cinepak", "mov", "rgb24"),
    FileFormat("ffv1.mkv", "ffv1", "ffv1", "matroska"),
    FileFormat("ffv1.avi", "ffv1", "ffv1", "avi", "yuv422p"),
    FileFormat("qtrle.mov", "qtrle", "qtrle", "mov", "rgb24"),
    FileFormat("png.mov", "png", "png", "mov", "rgb24"),
    FileFormat("png.avi", "png", "png", "avi", "rgb24"),
    FileFormat("prores.mov", "prores_ks", "prores", "mov", "yuv422p10le"),
    FileFormat(
        "dnxhr.mov", "dnxhd", "dnxhd", "mov", "yuv422p", width=256, height=128, options=(("profile", "dnxhr_lb"),)
    ),
    FileFormat("a.dv", "dvvideo", "dvvideo", "dv", **_DV),  # type: ignore[arg-type]
    FileFormat("ntsc.dv", "dvvideo", "dvvideo", "dv", "yuv411p", width=720, height=480, num_frames=4, rate=_NTSC),
    FileFormat("dv.avi", "dvvideo", "dvvideo", "avi", **_DV),  # type: ignore[arg-type]
    FileFormat("dv.mov", "dvvideo", "dvvideo", "mov", **_DV),  # type: ignore[arg-type]
    FileFormat("vp8.ogv", "libvpx", "vp8", "ogg", muxer="ogg"),
    FileFormat("h263.avi", "h263p", "h263", "avi", width=176, height=144),
    FileFormat("h263.3gp", "h263", "h263", "mov", width=176, height=144),
    FileFormat("mjpeg.mov", "mjpeg", "mjpeg", "mov", "yuvj420p"),
    FileFormat("h264.mp4", "libx264", "h264", "mov"),
    FileFormat("hevc.mkv", "libx265", "hevc", "matroska"),
    FileFormat("vp9.webm", "libvpx-vp9", "vp9", "matroska"),
    FileFormat("av1.mp4", "libsvtav1", "av1", "mov"),
    FileFormat("mpeg4.avi", "mpeg4", "mpeg4", "avi"),
    FileFormat("h264.ts", "libx264", "h264", "mpegts"),
    FileFormat("h264.m2ts", "libx264", "h264", "mpegts", muxer="mpegts", muxer_options=(("mpegts_m2ts_mode", "1"),)),
)

_ENCODER_OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "18"},
    "libx265": {"x265-params": "log-level=none"},
    "libsvtav1": {"preset": "10"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}


def write_format(folder: Path, file_format: FileFormat, *, num_frames: int | None = None) -> Path:
    path, wanted = folder / file_format.name, file_format
    size = (wanted.width, wanted.height)
    with av.open(str(path), "w", format=wanted.muxer, options=dict(wanted.muxer_options)) as container:
        stream: Any = container.add_stream(wanted.encoder, rate=wanted.rate)
        stream.codec_context.thread_count = 1
        stream.width, stream.height, stream.pix_fmt = *size, wanted.pix_fmt
        stream.bit_rate, stream.gop_size, stream.thread_type = 2_000_000, 6, "NONE"
        stream.options = {**_ENCODER_OPTIONS.get(wanted.encoder, {}), **dict(wanted.options)}
        for number in range(num_frames or wanted.num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, wanted.rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def valid_formats(folder: Path) -> dict[str, bytes]:
    """A file of each format by its name, short enough to be changed and sent thousands of times."""
    files = {
        wanted.name: write_format(folder, wanted, num_frames=6).read_bytes()
        for wanted in FORMATS
        if not wanted.is_large
    }
    files |= sample_files(folder)
    dv = next(wanted for wanted in FORMATS if wanted.name == "a.dv")
    files[dv.name] = write_format(folder, dv, num_frames=2).read_bytes()
    files["video cd.dat"] = as_video_cd(files["mpeg1.mpg"])
    return files | {"a.webp": write_webp(folder / "a.webp", [40, 80, 200, 40]).read_bytes()}


def sample_files(folder: Path) -> dict[str, bytes]:
    """Files of codecs without an encoder by name: stored ones, VP6 in its two other forms, and some made bit by bit."""
    files = {name: (SAMPLES / name).read_bytes() for name in ("theora.ogv", "wmv9.wmv", "vp6.flv")}
    files |= {"vp6.avi": _vp6_in_avi(folder), "vp6a.flv": _vp6_with_alpha()}
    files |= {path.name: write_vc1(path).read_bytes() for path in (folder / "vc1.wmv", folder / "vc1.ts")}
    return files | {"msmpeg4v1.avi": write_msmpeg4v1(folder / "msmpeg4v1.avi").read_bytes()}


def _vp6_in_avi(folder: Path) -> bytes:
    """The pictures of the FLV, which are shown upside down in AVI."""
    path = folder / "vp6.avi"
    with av.open(str(SAMPLES / "vp6.flv"), format="flv") as source, av.open(str(path), "w") as target:
        stream: Any = target.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                copy = av.Packet(bytes(packet))
                copy.stream, copy.pts, copy.dts, copy.time_base = stream, number, number, Fraction(1, 30)
                copy.is_keyframe = packet.is_keyframe
                target.mux(copy)
    return path.read_bytes().replace(b"FMP4", b"VP62")


def _vp6_with_alpha() -> bytes:
    """The pictures of the FLV, each with itself as the alpha channel."""
    flv = (SAMPLES / "vp6.flv").read_bytes()
    out, place = [flv[:13]], 13
    while place + 11 <= len(flv):
        size = int.from_bytes(flv[place + 1 : place + 4], "big")
        content = flv[place + 11 : place + 11 + size]
        if flv[place] == 9 and content[0] & 15 == 4:
            adjustment, picture = content[1:2], content[2:]
            content = bytes((content[0] + 1,)) + adjustment + len(picture).to_bytes(3, "big") + picture + picture
        tag = flv[place : place + 1] + len(content).to_bytes(3, "big") + flv[place + 4 : place + 11] + content
        out += [tag, len(tag).to_bytes(4, "big")]
        place += 15 + size
    return b"".join(out)


def write_webp(path: Path, durations_ms: Sequence[int], *, width: int = 96, height: int = 64) -> Path:
    first, *others = (Image.fromarray(numbered_picture(k, width, height)) for k in range(len(durations_ms)))
    first.save(path, save_all=True, append_images=others, duration=list(durations_ms), lossless=True, loop=0)
    return path


def as_video_cd(program_stream: bytes) -> bytes:
    """The RIFF file as which a system shows a track of a Video CD: sectors of 2352 bytes."""
    sectors = [program_stream[i : i + 2324].ljust(2324, b"\0") for i in range(0, len(program_stream), 2324)]
    raw = b"".join(
        b"\0" + b"\xff" * 10 + bytes((0, 0, 2, i % 75, 2)) + bytes(8) + s + bytes(4) for i, s in enumerate(sectors)
    )
    head = b"CDXAfmt " + struct.pack("<I", 16) + bytes(16) + b"data" + struct.pack("<I", len(raw))
    return b"RIFF" + struct.pack("<I", len(head) + len(raw)) + head + raw
