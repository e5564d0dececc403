"""Valid videos of every kind that is read; the first is the reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fuzz.writing import write

REFERENCE = "valid.mp4"  # its scores are compared before and after


def valid_files(folder: Path) -> Iterator[tuple[str, bytes]]:
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
