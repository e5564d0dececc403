"""The documents: tables equal the code, links lead to files, blocks marked `run` are executed as they are written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from house.diagram import draw
from house.tables import DOCUMENTS, REGION, TABLES, generated
from support.live import live_service
from support.paths import ROOT
from support.serving import add, classify, colour_video, serving, wait_until
from vidlex.service.settings import unknown_variables

OTHERS = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in (*DOCUMENTS, *OTHERS)}
DEFAULT_URL = "http://127.0.0.1:8000"
RUNNABLE = re.compile(r"^<!-- run(?:: (?P<model>\S+))? -->\n```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
ANSWER = re.compile(r"^<!-- answer -->\n```json\n(?P<answer>.*?)^```$", re.M | re.S)
MAX_README_LINES = 200
# Receivers of webhooks and files of jobs in the blocks are on this machine.
LOCAL_URLS = {
    "VIDLEX_WEBHOOK_HOSTS": '["127.0.0.1"]',
    "VIDLEX_FETCH_HOSTS": '["127.0.0.1"]',
    "VIDLEX_PRIVATE_NETWORKS": '["127.0.0.1/32"]',
}
MAX_FILES_OF_A_PATH = 15

DOCUMENTS_WITH_BLOCKS = sorted(name for name, text in TEXTS.items() if RUNNABLE.search(text))


def test_generated_tables_equal_the_code() -> None:
    found = [region["name"] for text in TEXTS.values() for region in REGION.finditer(text)]
    assert sorted(found) == sorted(TABLES)
    outdated = [name for name, text in TEXTS.items() if generated(text) != text]
    assert not outdated, f"run `make docs`: {outdated}"


def test_the_diagram_equals_the_code() -> None:
    assert (ROOT / "service/pictures/structure.svg").read_text(encoding="utf-8") == draw(), "run `make docs`"


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("name", TEXTS)
def test_every_variable_exists(name: str) -> None:
    named = set(re.findall(r"VIDLEX_[A-Z_]*[A-Z]", TEXTS[name]))
    if name == "CHANGELOG.md":
        named -= {"VIDLEX_BATCH_DELAY_MS", "VIDLEX_LLM_WHEEL", "VIDLEX_MAX_FPS"}  # removed
    assert unknown_variables(dict.fromkeys(named, "x")) == []


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files_and_headings(name: str) -> None:
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        path, _, anchor = target.partition("#")
        if ":" in path:
            continue
        file = (folder / path).resolve() if path else ROOT / name
        assert file.exists(), target
        if anchor:
            assert anchor in headings(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("name", TEXTS)
def test_named_files_exist(name: str) -> None:
    """Relative to the root or to the document's folder."""
    folder = (ROOT / name).parent
    pattern = r"`((?:service|model|migrations|tests|docker|\.ci|http|labels|engine|decode|house)/[\w./-]*)`"
    for path in re.findall(pattern, TEXTS[name]):
        assert (ROOT / path).exists() or (folder / path).exists(), path


def headings(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def listed_files(request_name: str) -> list[str]:
    """The numbered files below the line "A `POST /...`" of the service's README."""
    (section,) = re.findall(rf"^A `{request_name}`.*?:\n\n((?:\d+\. .*\n)+)", TEXTS["service/README.md"], re.MULTILINE)
    return re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)


def test_a_request_takes_the_listed_files(tmp_path: Path) -> None:
    """Except those of the decode process and of the label encoder, which the dummy model does not have."""
    entered: set[str] = set()

    def record(frame: FrameType, event: str, arg: Any) -> None:
        entered.add(frame.f_code.co_filename)

    threading.setprofile(record)  # of threads that start from here on, those of the service
    try:
        with serving(tmp_path, label_cache_bytes=1 << 20) as client:
            for path, send, elsewhere in (
                ("/labels", lambda: add(client, "red"), {"model/text/label_encoder.py"}),
                (
                    "/classify",
                    lambda: classify(client, colour_video(tmp_path / "red.mp4", "red")).raise_for_status(),
                    {"service/decode/worker.py", "model/decode/decoder.py"},
                ),
            ):
                files = listed_files(f"POST {path}")
                assert 5 < len(files) <= MAX_FILES_OF_A_PATH and len(set(files)) == len(files)
                assert elsewhere <= set(files)
                entered.clear()
                send()
                wanted = {str(ROOT / file) for file in files if file not in elsewhere}
                wait_until(lambda wanted=wanted: wanted <= set(map(os.path.realpath, list(entered))), path)  # type: ignore[misc]
    finally:
        threading.setprofile(None)


def test_there_are_blocks_to_run() -> None:
    assert set(DOCUMENTS_WITH_BLOCKS) >= {"README.md", "service/README.md"}
    assert [block["language"] for block in RUNNABLE.finditer(TEXTS["README.md"])] == ["bash", "bash", "python", "bash"]


@pytest.mark.parametrize("name", DOCUMENTS_WITH_BLOCKS)
def test_the_blocks_run_in_order(name: str, tmp_path: Path) -> None:
    """In one shell, against the model that the document names. Printed answers are those of the service."""
    blocks = list(RUNNABLE.finditer(TEXTS[name]))
    (model,) = {block["model"] or "dummy" for block in blocks}
    with live_service(tmp_path / "data", model=model, **LOCAL_URLS) as url:
        outputs = run_blocks(blocks, url, tmp_path)
    for answer in ANSWER.finditer(TEXTS[name]):
        documented, actual = json.loads(answer["answer"]), json.loads(outputs[0].splitlines()[-1])
        assert comparable(documented) == comparable(actual)
        scores = [[label["score"] for label in labels["labels"]] for labels in (documented, actual)]
        assert scores[0] == pytest.approx(scores[1], abs=0.01)


def run_blocks(blocks: list[re.Match[str]], url: str, folder: Path) -> list[str]:
    """The standard output of each block."""
    (folder / ".curlrc").write_text("fail-with-body\nnoproxy = *\nwrite-out = \\n\n")  # an HTTP error fails the block
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CURL_HOME": str(folder),
        "VIDLEX_DATA_DIR": str(folder / "data"),
        "VIDLEX_URL": url,
        "NO_PROXY": "*",
    }
    separator = "<next block>"
    codes = [
        block["code"] if block["language"] == "bash" else f"python - <<'END'\n{block['code']}END\n" for block in blocks
    ]
    script = f"echo '{separator}'\n".join(codes).replace(DEFAULT_URL, url)
    command = ["bash", "-euxo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split(separator)


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between two runs, or is left out or shortened in a document."""
    video = {key: value for key, value in answer["video"].items() if key != "sha256"}
    left_out = ("id", "similarity", "score")
    labels = [{key: value for key, value in label.items() if key not in left_out} for label in answer["labels"]]
    for label in labels:
        label["stretches"] = [{**stretch, "score": None} for stretch in label["stretches"]]
    return {
        **answer,
        "video": video,
        "labels": labels,
        "usage": sorted(answer["usage"]),
        "receipt": "id" in answer["receipt"],
    }
