"""The page in Chromium, through chromedriver: jumps, stretches, warnings, and no violation of its security policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from support import videos
from support.browser import Browser, needs_browser, open_browser
from support.live import live_service
from support.serving import colour_video

pytestmark = needs_browser


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live_service(tmp_path_factory.mktemp("page") / "data") as url:
        labels = [{"name": name} for name in ("red", "blue", "green")]
        httpx.post(f"{url}/labels", json={"labels": labels}, trust_env=False).raise_for_status()
        yield url


@pytest.fixture(scope="module")
def browser(url: str) -> Iterator[Browser]:
    with open_browser() as browser:
        browser.open(url)
        browser.wait("document.getElementById('state').dataset.ready === 'yes'")
        yield browser


def classify(browser: Browser, path: Path) -> None:
    browser.choose_file("#file", path)
    browser.wait("document.getElementById('player').readyState >= 1")
    browser.click("#classify-button")
    browser.wait("document.querySelectorAll('#results li').length > 0")


def bars(browser: Browser) -> dict[str, list[tuple[str, float, float]]]:
    """By label: title, left edge and width in percent of each part of the time bar."""
    script = """return [...document.querySelectorAll('#results li')].map((item) => [
        item.querySelector('.name').textContent,
        [...item.querySelectorAll('.times button')].map((part) => [
            part.title, parseFloat(part.style.left), parseFloat(part.style.width)])])"""
    return {name: [tuple(part) for part in parts] for name, parts in browser.run(script)}


def jump(browser: Browser, label: int, part: int) -> float:
    """The player's time after a click on a part of a label's time bar; both count from 1."""
    browser.click(f"#results li:nth-child({label}) .times button:nth-child({part})")
    return float(browser.wait("document.getElementById('player').currentTime"))


def text(browser: Browser, element: str) -> str:
    return str(browser.run(f"return document.getElementById('{element}').innerText"))


def test_stretches_of_a_long_video(browser: Browser, tmp_path: Path) -> None:
    classify(browser, colour_video(tmp_path / "long.mp4", "blue", "red", "blue", frames_each=80))
    assert "(shots)" in text(browser, "facts")
    found = bars(browser)
    ((title, left, width),) = found["red"]
    assert left == pytest.approx(100 / 3, abs=13) and width == pytest.approx(100 / 3, abs=13)
    assert " s to 1" in title and title.endswith(": 99.3 %")
    assert len(found["blue"]) == 2 and found["blue"][0][1] == 0 and found["green"] == []
    red = list(found).index("red") + 1
    assert 8 <= jump(browser, red, 1) < 16
    assert browser.complaints() == []


def test_the_timeline_of_a_long_video_has_a_cell_per_look(browser: Browser, tmp_path: Path) -> None:
    browser.click("#timeline")
    classify(browser, colour_video(tmp_path / "long.mp4", "blue", "red", "blue", frames_each=80))
    found = bars(browser)
    assert 8 <= len(found["red"]) <= 10
    assert len({len(parts) for parts in found.values()}) == 1
    browser.click("#timeline")


def test_a_short_video_has_no_time_bar(browser: Browser, tmp_path: Path) -> None:
    classify(browser, colour_video(tmp_path / "short.mp4", "red"))
    assert bars(browser) == {"red": [], "blue": [], "green": []}
    assert text(browser, "warnings") == ""


def test_jumps_follow_the_clock_of_the_file(browser: Browser, tmp_path: Path) -> None:
    """The picture begins 5 s after the sound; then a file whose clock starts at an hour."""
    colours = [np.full((96, 160, 3), colour, np.uint8) for colour in ((0, 0, 250), (250, 0, 0))]
    for name, first_ms, audio_seconds in (("late.mkv", 5000, 8.0), ("hour.mkv", 3_600_000, 0.0)):
        path = videos.write_video(
            tmp_path / name,
            num_frames=240,
            pts_ms=[first_ms + 100 * i for i in range(240)],
            picture=lambda number: colours[number >= 120],
            audio_seconds=audio_seconds,
        )
        classify(browser, path)
        found = bars(browser)
        red = list(found).index("red") + 1
        ((_, left, _),) = found["red"]
        assert left == pytest.approx(50, abs=13)
        assert jump(browser, red, 1) == pytest.approx(first_ms / 1000 + 18, abs=6)


def test_warnings_are_shown(browser: Browser, tmp_path: Path) -> None:
    whole = colour_video(tmp_path / "v.mkv", "red", "blue", frames_each=40)
    classify(browser, videos.truncate(whole, tmp_path / "half.mkv", 0.6))
    assert "incomplete" in text(browser, "warnings")
    assert browser.complaints() == []
