"""An exported WebVTT file as subtitles of a video in Chromium."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from support.browser import needs_browser, open_browser
from support.serving import colour_video
from vidlex.service.exports.tagged import TaggedName, TaggedStretch, TaggedVideo
from vidlex.service.exports.webvtt import webvtt

PAGE = """<!doctype html><video id="v" src="v.mp4" muted width="320">
<track id="t" kind="subtitles" src="v.vtt" srclang="en" default></video>"""
SHOWN = "[...document.getElementById('t').track.activeCues].map((cue) => cue.getCueAsHTML().textContent).sort()"


class Quiet(SimpleHTTPRequestHandler):
    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".vtt": "text/vtt"}  # noqa: RUF012

    def log_message(self, *_: object) -> None: ...


@needs_browser
def test_cues_show_while_the_video_plays(tmp_path: Path) -> None:
    colour_video(tmp_path / "v.mp4", *["red"] * 5)  # 5 s
    labels = [
        TaggedName("lbl_1", "red <b> & blue", 0.9, matched=True, stretches=[TaggedStretch(2000, 4000, 0.9)]),
        TaggedName("lbl_2", "outdoors", 0.8, matched=True),
    ]
    video = TaggedVideo("v.mp4", "ab" * 32, 5000, 64, 64, 10.0, "m", "f", None, labels)
    (tmp_path / "v.vtt").write_text("".join(webvtt(video)), encoding="utf-8")
    (tmp_path / "index.html").write_text(PAGE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with open_browser() as browser:
            browser.open(f"http://127.0.0.1:{server.server_port}/index.html")
            browser.wait("document.getElementById('t').readyState === 2")
            browser.wait("document.getElementById('v').readyState >= 1")
            browser.run("document.getElementById('v').play()")
            assert browser.wait(f"({SHOWN}).length === 1 && {SHOWN}") == ["outdoors (0.80)"]
            assert browser.wait(f"({SHOWN}).length === 2 && {SHOWN}") == ["outdoors (0.80)", "red <b> & blue (0.90)"]
    finally:
        server.shutdown()
        server.server_close()
