"""Small clips, and copies of them with other clocks, packets or containers. Nothing is encoded twice in one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av

from support.video_cases import ffmpeg
from support.videos import write_audio_only, write_video

WIDTH, HEIGHT = 96, 64
_PIX_FMT = {"mjpeg": "yuvj420p", "gif": "rgb8", "ffv1": "yuv420p"}


class Clips:
    """Clips of numbered frames in one folder, each written when it is first wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_paths = 0

    def path(self, suffix: str) -> Path:
        """A new path, such as ``out7.mp4``."""
        self.num_paths += 1
        return self.folder / f"out{self.num_paths}{suffix}"

    def clip(
        self,
        suffix: str = ".mp4",
        *,
        codec: str = "libx264",
        seconds: float = 4.0,
        fps: int = 25,
        gop: int = 50,
        b_frames: int = 2,
        sound: bool = False,
        first: int = 0,
        x264: str = "",
        muxer: tuple[tuple[str, str], ...] = (),
    ) -> Path:
        """``x264`` are further parameters of the encoder, ``sound`` of 20 s, ``first`` the first number shown."""
        key = f"{codec}-{seconds}-{fps}-{gop}-{b_frames}-{sound}-{first}-{x264}-{muxer}"
        path = self.folder / ("".join(c if c.isalnum() else "_" for c in key) + suffix)
        if path.exists():
            return path
        if sound:
            silent = self.clip(
                suffix, codec=codec, seconds=seconds, fps=fps, gop=gop, b_frames=b_frames, first=first, x264=x264
            )
            words = tuple(word for name, value in muxer for word in (f"-{name}", value))
            ffmpeg("-i", silent, "-i", self._tone(), "-c", "copy", *words, path)
            return path
        options: dict[str, str] = {}
        if codec == "libx264":
            # Numbers that change every frame look like a new scene to the encoder.
            parameters = f"scenecut=0:keyint={gop}:min-keyint={gop}:bframes={b_frames}" + (f":{x264}" if x264 else "")
            options = {"preset": "veryfast", "crf": "24", "x264-params": parameters}
        elif codec == "libx265":
            options = {"preset": "ultrafast", "x265-params": f"log-level=none:scenecut=0:bframes={b_frames}"}
        elif codec in ("mpeg4", "mpeg2video"):
            options = {"bf": str(b_frames), "sc_threshold": "1000000000"}
        return write_video(
            path,
            width=WIDTH,
            height=HEIGHT,
            num_frames=round(seconds * fps),
            fps=fps,
            codec=codec,
            gop=gop,
            pix_fmt=_PIX_FMT.get(codec, "yuv420p"),
            picture=(lambda number: _picture(number + first)),
            options=options,
            container_options=dict(muxer),
        )

    def _tone(self) -> Path:
        """Sound of 20 s. FFmpeg's encoder takes longer for it than for the pictures, so it is encoded once."""
        path = self.folder / "tone.m4a"
        return path if path.exists() else write_audio_only(path, 20.0)

    def copied(self, source: Path, suffix: str, *before: str, after: tuple[str, ...] = ()) -> Path:
        """``ffmpeg BEFORE -i SOURCE -c copy AFTER``: what editors do when they cut without encoding."""
        path = self.path(suffix)
        ffmpeg(*before, "-i", source, "-c", "copy", *after, path)
        return path

    def remuxed(
        self,
        source: Path,
        suffix: str,
        *,
        shift_ms: int = 0,
        sound_shift_ms: int | None = None,
        change: Callable[[int, Any], bytes | None] | None = None,
        muxer: dict[str, str] | None = None,
    ) -> Path:
        """The packets of ``source`` later by ``shift_ms`` (those of the sound by ``sound_shift_ms``).

        ``change`` gets the number and the packet of each video packet, in stored order, and returns its new bytes or
        None to leave it out.
        """
        path = self.path(suffix)
        options = {"avoid_negative_ts": "disabled", **(muxer or {})}
        with av.open(str(source)) as reader, av.open(str(path), "w", options=options) as writer:
            streams = {
                s.index: writer.add_stream_from_template(s) for s in reader.streams if s.type in ("video", "audio")
            }
            number = 0
            for read in reader.demux():
                packet = read
                if packet.dts is None and packet.pts is None:
                    continue
                is_video = packet.stream.type == "video"
                by = shift_ms if is_video or sound_shift_ms is None else sound_shift_ms
                if is_video and change is not None:
                    payload = change(number, packet)
                    number += 1
                    if payload is None:
                        continue
                    packet = _with_bytes(packet, payload)
                ticks = round(by / 1000 / packet.time_base)
                packet.pts = None if packet.pts is None else packet.pts + ticks
                packet.dts = None if packet.dts is None else packet.dts + ticks
                packet.stream = streams[packet.stream_index]
                writer.mux(packet)
        return path


def _with_bytes(packet: Any, payload: bytes) -> Any:
    new = av.Packet(payload)
    new.pts, new.dts, new.duration, new.time_base = packet.pts, packet.dts, packet.duration, packet.time_base
    new.is_keyframe = packet.is_keyframe
    new.stream = packet.stream
    return new


def _picture(number: int) -> Any:
    from support.videos import MAX_NUMBER, numbered_picture

    return numbered_picture(number % MAX_NUMBER, WIDTH, HEIGHT)
