"""`vidlex demo`: starts a service, registers labels over HTTP, classifies sample videos and prints the results.

The label store is in a temporary folder. The port is that of the settings if it is free, else any free one.
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

from vidlex.model.specs import DEFAULT_MODEL, checkpoint_folder
from vidlex.service.client.errors import VidlexClientError
from vidlex.service.commands.classify import print_ranking
from vidlex.service.commands.connection import connected
from vidlex.service.commands.labels.bulk import register
from vidlex.service.commands.output import (
    EXIT_INTERRUPTED,
    CommandError,
    JsonFlag,
    print_json,
    print_text,
    progress,
    stdout,
    use_json,
)
from vidlex.service.commands.preflight import require_model, settings_or_error
from vidlex.service.commands.sample_videos import checkpoint_samples, real_samples, write_colour_video
from vidlex.service.commands.weights import fetch_model_weights

READY_TIMEOUT_SECONDS = 300.0
STOP_TIMEOUT_SECONDS = 30.0
LOG_LINES = 30
NUM_LABELS = 20
MIN_OTHERS = 6
NUM_LABELS_SHOWN = 8
NUM_RANKS = 8  # of labels that are shown for a video, at least
MIN_PRECISION = 0.5  # below this ``mean_precision`` the demo fails

# The demo uses an empty store on loopback without API keys.
_IGNORED_VARIABLES = {"VIDLEX_REDIS_URL", "VIDLEX_REDIS_PASSWORD_FILE", "VIDLEX_HOST", "VIDLEX_API_KEYS_FILE"}

DUMMY_COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
DUMMY_OTHER_LABELS = ("cyan", "magenta", "white")

# For models without sample videos of their own, together with real videos.
EVERYDAY_LABELS = (
    "person", "man", "woman", "crowd", "suit", "bow tie",
    "bicycle", "car", "taxi", "bus", "truck", "motorcycle", "train", "airplane",
    "street", "building", "skyscraper", "night", "beach", "forest", "mountain", "grass", "kitchen", "office",
    "potted plant", "window", "food", "computer", "book",
    "bird", "parrot", "dog", "cat", "horse", "rabbit", "cartoon",
    "static camera", "camera pans left", "zooming in", "scene change",
)  # fmt: skip


@dataclass(frozen=True)
class Samples:
    """Videos with their true labels, and all labels to register."""

    labels: tuple[str, ...]
    videos: tuple[tuple[Path, frozenset[str]], ...]


class Stopped(Exception):
    """SIGTERM or SIGHUP was received."""


def demo(
    exit_when_done: Annotated[
        bool, typer.Option("--exit", help="Stop the service and exit; code 0 if the results are correct, else 1.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help=f"Model, as for `vidlex serve --model`. Default: VIDLEX_MODEL, else {DEFAULT_MODEL}."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Start a service, register labels, classify sample videos and show the ranked labels."""
    use_json(as_json)
    settings = settings_or_error(model=model)
    require_model(settings.model)
    try:
        with _stop_on_signals(), tempfile.TemporaryDirectory(prefix="vidlex-demo-") as folder:
            samples = find_samples(settings.model, Path(folder))
            fetch_model_weights(settings.model, as_json=as_json)
            with _service(Path(folder), settings.model, settings.port) as (process, url):
                _print(f"Vidlex is ready at [bold]{url}[/] (model: {escape(settings.model)}).", as_json)
                precision = _classify_samples(url, samples, as_json=as_json)
                if precision < MIN_PRECISION:
                    raise CommandError(f"only {precision:.0%} of the true labels rank first; the demo has failed")
                if not exit_when_done:
                    _wait_until_stopped(process, url, as_json)
    except Stopped:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def find_samples(model: str, folder: Path) -> Samples:
    """The sample videos of a checkpoint that has some, else real videos with EVERYDAY_LABELS; for ``dummy``, videos of
    a single colour, which are written to ``folder``."""
    if model == "dummy":
        videos = []
        for name, rgb in DUMMY_COLOURS.items():
            videos.append((write_colour_video(folder / f"{name}.mp4", rgb), frozenset({name})))
        return Samples((*DUMMY_COLOURS, *DUMMY_OTHER_LABELS), tuple(videos))
    own = checkpoint_samples(model)
    truth = tuple((video.path, frozenset(video.labels)) for video in own or real_samples())
    if not own:
        return Samples(EVERYDAY_LABELS, truth)
    true_labels = sorted({name for _, names in truth for name in names})
    return Samples((*true_labels, *_other_labels(model, true_labels)), truth)


def _other_labels(model: str, true_labels: Sequence[str]) -> list[str]:
    """Trained labels that are in none of the videos, evenly spaced over the vocabulary of the model."""
    config = json.loads((checkpoint_folder(model) / "config.json").read_text(encoding="utf-8"))
    others = [name for name in config.get("trained_labels", ()) if name not in true_labels]
    num_wanted = max(MIN_OTHERS, NUM_LABELS - len(true_labels))
    return [others[i * len(others) // num_wanted] for i in range(num_wanted)] if len(others) >= num_wanted else others


def mean_precision(answers: list[tuple[dict[str, Any], frozenset[str]]]) -> float:
    """R-precision (the share of n true labels among the n highest scores), averaged over the videos."""
    precisions = []
    for answer, truth in answers:
        best = sorted(answer["labels"], key=lambda found: -found["score"])[: len(truth)]
        precisions.append(len(truth & {found["name"] for found in best}) / len(truth))
    return sum(precisions) / len(precisions)


def _classify_samples(url: str, samples: Samples, *, as_json: bool) -> float:
    """Register the labels, classify the videos and print the results. Returns ``mean_precision``."""
    with connected(url) as client:
        started = time.monotonic()
        entries = [{"name": name} for name in samples.labels]
        for item in register(client, entries, if_exists="return"):
            if item.get("error"):
                raise CommandError(f"label {item['name']!r}: {item['error'].get('detail')}")
        seconds = time.monotonic() - started
        _print(f"Registered {len(entries)} labels in {seconds:.1f} s: {_first(samples.labels)}", as_json)
        answers = []
        for path, truth in samples.videos:
            with progress(f"classifying {path.name}", total=None):
                answer = client.classify(path, top_k=0).model_dump(mode="json")
            answers.append((answer, truth))
            shown = {**answer, "labels": answer["labels"][: max(NUM_RANKS, len(truth) + 3)]}
            if not as_json:
                stdout().print()
                print_ranking(shown, title=path.name, truth=truth)
        precision = mean_precision(answers)
        if as_json:
            results = [
                {"file": path.name, "true_labels": sorted(truth), **answer}
                for (path, truth), (answer, _) in zip(samples.videos, answers, strict=True)
            ]
            print_json({"url": url, "mean_precision": precision, "results": results})
        _print(f"\n{precision:.0%} of the true labels rank first ({len(answers)} videos).", as_json)
        return precision


def _first(names: Sequence[str]) -> str:
    shown = escape(", ".join(names[:NUM_LABELS_SHOWN]))
    return shown + (", ..." if len(names) > NUM_LABELS_SHOWN else "")


def _wait_until_stopped(process: subprocess.Popen[bytes], url: str, as_json: bool) -> None:
    _print(
        f"The service is still running. Open [bold]{url}[/], or run in another terminal:\n"
        f'  vidlex labels add --url {url} "golden retriever"\n'
        f"  vidlex classify --url {url} video.mp4\n"
        "Press Ctrl-C to stop it and delete its data.",
        as_json,
    )
    try:
        status = process.wait()
    except KeyboardInterrupt:
        _print("Stopping.", as_json)
        return
    raise CommandError(f"the service exited with status {status}")


@contextmanager
def _service(folder: Path, model: str, preferred_port: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A ready service process. The listening socket is bound here and inherited, so that the port stays reserved."""
    listener = _bind(preferred_port)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    log = folder / "service.log"
    environment = {key: value for key, value in os.environ.items() if key not in _IGNORED_VARIABLES}
    command = [sys.executable, "-P", "-m", "vidlex.service.cli", "serve", "--fd", str(listener.fileno())]
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
            start_new_session=True,  # so that Ctrl-C reaches only the demo, which stops the service
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
    from vidlex.service.client.client import Client
    from vidlex.service.client.config import NO_WAIT

    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    with (
        progress("starting the service", total=None) as bar,
        Client(url, timeout_seconds=2.0, retries=NO_WAIT) as client,
    ):
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise CommandError(f"the service exited with status {process.returncode}:\n{_tail(log)}")
            try:
                found = client.ready()
                if found.status == "ready":
                    return
                details = [check.detail for check in found.checks.values() if not check.ok]
                bar.update(bar.task_ids[0], description=f"starting the service: {'; '.join(details)}")
            except VidlexClientError:
                pass  # not listening yet
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
def _stop_on_signals() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    # Shells make background jobs ignore SIGINT.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(text: str, as_json: bool) -> None:
    if not as_json:
        print_text(text)
