"""Chromium through chromedriver, with a few commands of WebDriver."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.processes import PATIENCE_SECONDS, free_port, until

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")

needs_browser = pytest.mark.skipif(DRIVER is None or BROWSER is None, reason="needs chromedriver and Chromium")
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1100,1300"]


class Browser:
    def __init__(self, url: str) -> None:
        options = {"args": ARGUMENTS, "binary": BROWSER}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._http = httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False)
        session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{session['sessionId']}"

    def close(self) -> None:
        self._send("DELETE", self._session)
        self._http.close()

    def open(self, url: str) -> None:
        self._send("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        return self._send("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def wait(self, expression: str) -> Any:
        until(lambda: bool(self.run(f"return {expression}")))
        return self.run(f"return {expression}")

    def click(self, selector: str) -> None:
        self._send("POST", f"{self._session}/element/{self._find(selector)}/click", {})

    def choose_file(self, selector: str, path: Path) -> None:
        self._send("POST", f"{self._session}/element/{self._find(selector)}/value", {"text": str(path)})

    def complaints(self) -> list[str]:
        entries = self._send("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def _find(self, selector: str) -> str:
        found = self._send("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        return str(next(iter(found.values())))

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._http.request(method, path, json=body)
        assert answer.is_success, answer.text
        return answer.json()["value"]


@contextmanager
def open_browser() -> Iterator[Browser]:
    port = free_port()
    process = subprocess.Popen([str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}/status"))
        browser = Browser(f"http://127.0.0.1:{port}")
        yield browser
        browser.close()
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False
