"""`vidlex serve`: refusals before PyTorch is imported, and what a terminal shows until the service is ready."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from support.live import live_process
from support.processes import PATIENCE_SECONDS
from vidlex.model.specs import zoo_dir
from vidlex.service.cli import app
from vidlex.service.labels.embedded.server import EmbeddedStore

# 2 s on an idle machine.
MAX_SECONDS = 10.0


def refusal(*arguments: str | Path, **variables: str) -> tuple[int, str]:
    """Exit status and error of `vidlex serve`, which must be quick, on one line and without PyTorch."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
    command = [sys.executable, "-X", "importtime", "-m", "vidlex.service.cli", "serve", "--port", "0"]
    started = time.monotonic()
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=inherited | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    seconds = time.monotonic() - started
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "vidlex.service.commands.preflight" in imported and "torch" not in imported
    errors = [line for line in lines if not line.startswith("import time:")]
    assert len(errors) == 1 and errors[0].startswith("error: "), errors
    assert done.stdout == ""
    assert seconds < MAX_SECONDS
    return done.returncode, errors[0]


def test_misspelt_model_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    status, error = refusal("--model", "emoji-smal", "--data-dir", tmp_path)
    assert status == 2
    assert "no model 'emoji-smal': did you mean 'emoji-small'?" in error
    assert "(emoji-small, photo-small)" in error and "open_clip:" in error, "valid models are listed"


def test_unknown_model_is_refused_with_the_list(tmp_path: Path) -> None:
    status, error = refusal("--model", "whisper", "--data-dir", tmp_path)
    assert status == 2
    assert "did you mean" not in error and "(emoji-small, photo-small)" in error


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    shutil.copyfile(zoo_dir() / "emoji-small" / "config.json", folder / "config.json")
    (folder / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    return folder


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "no model"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"architectures": []}'), "belongs to another program"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100), "is damaged (100 bytes)"),
        (
            lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "Git LFS pointer",
        ),
    ],
)
def test_folder_that_is_not_a_checkpoint_is_refused(
    checkpoint: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(checkpoint)
    status, error = refusal("--model", checkpoint, "--data-dir", checkpoint.parent / "data")
    assert status == 2 and str(checkpoint) in error and words in error


def test_public_address_without_a_key_is_refused(tmp_path: Path) -> None:
    status, error = refusal("--host", "0.0.0.0", "--model", "dummy", "--data-dir", tmp_path)
    assert status == 1
    assert "without API keys" in error and "vidlex keys create --direct" in error
    keys = tmp_path / "keys"
    keys.write_text("# none yet\n")
    status, error = refusal("--host", "0.0.0.0", "--data-dir", tmp_path, VIDLEX_API_KEYS_FILE=str(keys))
    assert status == 1 and "API key file" in error


def test_public_address_is_served_with_a_stored_key(tmp_path: Path) -> None:
    environment = {"VIDLEX_DATA_DIR": str(tmp_path / "data"), "VIDLEX_REDIS_URL": ""}
    assert CliRunner().invoke(app, ["keys", "create", "--direct"], env=environment).exit_code == 0
    with live_process(tmp_path / "data", VIDLEX_HOST="0.0.0.0") as (url, _):
        assert url.startswith("http://0.0.0.0:")


def test_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        status, error = refusal("--port", str(port), "--model", "dummy", "--data-dir", tmp_path)
    assert status == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; set --port or --host" in error


def test_data_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, error = refusal("--model", "dummy", "--data-dir", tmp_path / "file" / "data")
    assert status == 1
    assert f"cannot write to the data folder {tmp_path}/file/data" in error and "--data-dir" in error


def test_data_folder_in_use_is_refused(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path):
        status, error = refusal("--model", "dummy", "--data-dir", tmp_path)
    assert status == 1
    assert f"the data folder {tmp_path} is in use by process {os.getpid()}" in error


@pytest.mark.parametrize("url", ["redis://:secret@host:port/0", "redis://[::1/0", "http://host", "localhost:6379"])
def test_malformed_redis_url_is_refused_without_showing_it(tmp_path: Path, url: str) -> None:
    status, error = refusal("--model", "dummy", "--data-dir", tmp_path, VIDLEX_REDIS_URL=url)
    assert status == 2
    assert "VIDLEX_REDIS_URL" in error and "secret" not in error and url not in error


def test_checkpoint_that_cannot_be_loaded_ends_the_start_with_the_reason(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "vidlex.service.cli", "serve", "--port", "0", "--model", str(checkpoint)]
    command += ["--data-dir", str(checkpoint.parent / "data")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 1
    message = " ".join(done.stderr[done.stderr.rindex("error:") :].split())
    assert message.startswith("error: the service could not start: it failed while loading the model: ")


def test_a_model_that_cannot_be_downloaded_ends_the_start_with_the_remedy(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vidlex.service.cli", "serve", "--port", "0", "--model", "clip", "--json"]
    command += ["--data-dir", str(tmp_path / "data")]
    offline = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, env=offline, check=False, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 1
    detail = json.loads(done.stderr.splitlines()[-1])["error"]["detail"]
    assert "could not fetch 'timm/ViT-B-32-SigLIP2-256'" in detail and "open_clip:local-dir:/path/to/folder" in detail


# --- output


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What a terminal shows until the service is ready."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "vidlex.service.cli", "serve", "--port", "0", "--model", "dummy"]
    command += ["--data-dir", str(tmp_path_factory.mktemp("terminal") / "data")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VIDLEX_")}
    environment |= {"TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        shown = ""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "Press Ctrl-C" not in shown and time.monotonic() < deadline:
            shown += os.read(controller, 65536).decode()
        process.terminate()
        yield shown
    os.close(controller)


def test_terminal_shows_a_line_when_the_service_is_ready(screen: str) -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen)
    ready = [line for line in plain.splitlines() if line.startswith("Ready on ")]
    assert len(ready) == 1
    pattern = r"Ready on http://127\.0\.0\.1:\d+ after \d+\.\d s: dummy; 0 labels\. Press Ctrl-C to stop\."
    assert re.fullmatch(pattern, ready[0])


def test_terminal_shows_coloured_text_without_lines_of_libraries(screen: str) -> None:
    assert "\x1b[" in screen and "{" not in screen
    assert "listening" in screen and "model_loaded" in screen
    assert "uvicorn" not in screen.lower() and "Application startup" not in screen and "Warning" not in screen


def test_log_is_json_if_it_is_not_a_terminal(tmp_path: Path) -> None:
    with live_process(tmp_path / "data"):
        pass
    lines = [json.loads(line) for line in (tmp_path / "data.log").read_text().splitlines()]
    assert {"listening", "ready"} <= {line["event"] for line in lines}


def test_log_format_can_be_chosen(tmp_path: Path) -> None:
    with live_process(tmp_path / "data", VIDLEX_LOG_FORMAT="console") as (url, _):
        httpx.get(f"{url}/labels/%1b[2Jevil%c2%9b31m", trust_env=False)
    text = (tmp_path / "data.log").read_text()
    assert "Ready on http://" in text and "[info" in text and "{" not in text
    # A request cannot send control sequences to the terminal.
    assert "/labels/\\x1b[2Jevil\\x9b31m" in text and "\x1b" not in text and "\x9b" not in text
