"""`vidlex demo`: a service of its own, some labels, real videos, and the answer on the screen.

Everything goes the way a user's request goes: a `vidlex serve` process, labels by POST, mp4 files by multipart. The
label store is a throw-away folder; the port is the usual one if it is free, else any.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.markup import escape

from vidlex.service.commands.bulk import register
from vidlex.service.commands.classify import ranking
from vidlex.service.commands.client import ServiceClient
from vidlex.service.commands.output import (
    EXIT_INTERRUPTED,
    CommandError,
    JsonFlag,
    print_json,
    progress,
    stdout,
    use_json,
)
from vidlex.service.commands.sample_videos import write_colour_video
from vidlex.service.commands.serve import settings_or_error
from vidlex.service.commands.training import fetch_llm_with_progress

READY_TIMEOUT_SECONDS = 300.0
STOP_TIMEOUT_SECONDS = 30.0
LOG_LINES = 30
NUM_LABELS = 20
MIN_OTHERS = 6
RIGHT_ENOUGH = 0.5
"""The demo fails when, on average, fewer than this share of a video's n true labels are among its first n."""

_NOT_THE_DEMOS = {"VIDLEX_REDIS_URL", "VIDLEX_REDIS_PASSWORD_FILE", "VIDLEX_HOST", "VIDLEX_API_KEYS_FILE"}
"""Settings of a real service. The demo's own is empty, open and on loopback."""

DUMMY_COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
DUMMY_OTHERS = ("cyan", "magenta", "white")


@dataclass(frozen=True)
class Samples:
    """Videos with their true labels, and the labels to register (the true ones and others)."""

    labels: tuple[str, ...]
    videos: tuple[tuple[Path, frozenset[str]], ...]


class Stopped(Exception):
    """SIGTERM or SIGHUP: end like Ctrl-C, with everything cleaned up."""


def demo(
    end: Annotated[
        bool, typer.Option("--exit", help="End by itself; the exit code tells if the answer is right.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="A checkpoint of the zoo, or dummy (VIDLEX_MODEL, emoji-small).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Start a service, register labels, tag real videos over HTTP and show the ranked labels."""
    use_json(as_json)
    settings = settings_or_error(model=model)
    try:
        with _signals_stop(), tempfile.TemporaryDirectory(prefix="vidlex-demo-") as folder:
            samples = find_samples(settings.model, Path(folder))
            _fetch_weights(settings.model)
            with _service(Path(folder), settings.model, settings.port) as (process, url):
                _say(f"Vidlex is ready at [bold]{url}[/] with the model {escape(settings.model)}.", as_json)
                share = _show(url, samples, as_json=as_json)
                if share < RIGHT_ENOUGH:
                    raise CommandError(f"the answers are wrong: only {share:.0%} of the true labels came first")
                if not end:
                    _leave_running(process, url, as_json)
    except Stopped:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def find_samples(model: str, folder: Path) -> Samples:
    """The samples that came with a checkpoint; for ``dummy`` videos of one colour, written to ``folder``."""
    if model == "dummy":
        videos = []
        for name, rgb in DUMMY_COLOURS.items():
            videos.append((write_colour_video(folder / f"{name}.mp4", rgb), frozenset({name})))
        return Samples((*DUMMY_COLOURS, *DUMMY_OTHERS), tuple(videos))
    samples = _checkpoint_folder(model) / "samples"
    try:
        document = json.loads((samples / "samples.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CommandError(
            f"the model {model} comes with no sample videos to show; "
            f"try `vidlex serve --model {model}` and `vidlex classify FILE`"
        ) from None
    truth = {samples / file: frozenset(names) for file, names in document.items()}
    true_labels = sorted({name for names in truth.values() for name in names})
    return Samples((*true_labels, *_others(model, true_labels)), tuple(truth.items()))


def _others(model: str, true_labels: Sequence[str]) -> list[str]:
    """Labels that the model was trained on and that are in none of the videos, from all over its vocabulary."""
    config = json.loads((_checkpoint_folder(model) / "config.json").read_text(encoding="utf-8"))
    others = [name for name in config.get("trained_labels", ()) if name not in true_labels]
    num_wanted = max(MIN_OTHERS, NUM_LABELS - len(true_labels))
    return [others[i * len(others) // num_wanted] for i in range(num_wanted)] if len(others) >= num_wanted else others


def right_share(answers: list[tuple[dict[str, Any], frozenset[str]]]) -> float:
    """Of a video's n true labels, the share among its n best; averaged over the videos."""
    shares = []
    for answer, truth in answers:
        best = sorted(answer["labels"], key=lambda found: -found["score"])[: len(truth)]
        shares.append(len(truth & {found["name"] for found in best}) / len(truth))
    return sum(shares) / len(shares)


def _show(url: str, samples: Samples, *, as_json: bool) -> float:
    """Register, classify and print. Returns ``right_share``."""
    with ServiceClient(url) as client:
        started = time.monotonic()
        entries = [{"name": name} for name in samples.labels]
        for item in register(client, entries, if_exists="return"):
            if item.get("error"):
                raise CommandError(f"the label {item['name']!r} was refused: {item['error'].get('detail')}")
        seconds = time.monotonic() - started
        _say(f"{len(entries)} labels registered in {seconds:.1f} s: {escape(', '.join(samples.labels))}.", as_json)
        answers = []
        for path, truth in samples.videos:
            with progress(f"classifying {path.name}", total=None):
                answer = client.classify(path, {"top_k": 0})
            answers.append((answer, truth))
            shown = {**answer, "labels": answer["labels"][: len(truth) + 3]}
            if not as_json:
                stdout().print()
                stdout().print(ranking(shown, title=path.name, truth=truth))
        share = right_share(answers)
        if as_json:
            results = [
                {"file": path.name, "true_labels": sorted(truth), **answer}
                for (path, truth), (answer, _) in zip(samples.videos, answers, strict=True)
            ]
            print_json({"url": url, "right_share": share, "results": results})
        _say(f"\n{share:.0%} of the true labels came first ({len(answers)} videos).", as_json)
        return share


def _leave_running(process: subprocess.Popen[bytes], url: str, as_json: bool) -> None:
    _say(
        f"The service goes on; open [bold]{url}[/] in a browser, or say in another terminal:\n"
        f'  vidlex labels add --url {url} "something new"\n'
        f"  vidlex classify --url {url} your-video.mp4\n"
        "Ctrl-C stops it; this demo keeps nothing.",
        as_json,
    )
    try:
        status = process.wait()
    except KeyboardInterrupt:
        _say("Stopping.", as_json)
        return
    raise CommandError(f"the service ended with status {status}")


def _fetch_weights(model: str) -> None:
    """What the checkpoint needs beside itself, before the service starts, so that a person sees it being fetched."""
    if model == "dummy":
        return
    try:
        config = json.loads((_checkpoint_folder(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CommandError(f"there is no checkpoint {model}") from None
    llm = config.get("label", {}).get("llm")
    if llm:
        fetch_llm_with_progress(llm)


def _checkpoint_folder(model: str) -> Path:
    from vidlex.model.weights import list_zoo, zoo_dir

    return zoo_dir() / model if model in list_zoo() else Path(model).expanduser()


@contextmanager
def _service(folder: Path, model: str, preferred_port: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A ready service process on a socket that is bound here, so that no other program can take the port between."""
    listener = _bind(preferred_port)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    log = folder / "service.log"
    environment = {key: value for key, value in os.environ.items() if key not in _NOT_THE_DEMOS}
    command = [sys.executable, "-m", "vidlex.service.cli", "serve", "--fd", str(listener.fileno())]
    command += ["--parent", str(os.getpid())]
    command += ["--data-dir", str(folder / "data"), "--model", model]
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            env=environment,
            pass_fds=(listener.fileno(),),
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops the service in order
        )
    listener.close()
    try:
        _wait_ready(process, url, log)
        yield process, url
    finally:
        _stop(process)


def _bind(preferred_port: int) -> socket.socket:
    for port in (preferred_port, 0):
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            continue
    raise CommandError("no free port on 127.0.0.1")


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import httpx

    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    with progress("starting the service", total=None) as bar, httpx.Client(trust_env=False) as http:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise CommandError(f"the service ended with status {process.returncode}:\n{_tail(log)}")
            try:
                answer = http.get(f"{url}/readyz", timeout=2.0)
                if answer.status_code == 200:
                    return
                waiting_for = [c["detail"] for c in answer.json()["checks"].values() if not c["ok"]]
                bar.update(bar.task_ids[0], description=f"starting the service: {'; '.join(waiting_for)}")
            except (httpx.TransportError, ValueError, KeyError):
                pass  # not listening yet, or busy loading
            time.sleep(0.2)
    raise CommandError(f"the service was not ready after {READY_TIMEOUT_SECONDS:.0f} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _signals_stop() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    # A shell that puts a job into the background has it ignore Ctrl-C's signal; who sends it still means it.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str, as_json: bool) -> None:
    if not as_json:
        stdout().print(text, soft_wrap=True)
