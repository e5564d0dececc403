"""Clients that ask for large answers and do not read them cost little memory, and it is returned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from support.live import live_process
from support.processes import until
from support.raw_http import connect, exchange, head
from vidlex.service.bounds import MAX_BATCH_ANSWER_BYTES, MAX_PAGE_BYTES

NUM_LABELS = 1000
METADATA_BYTES = 16_000
MAX_GROWTH_BYTES = 500 << 20  # 60 answers of 16 MB took 2.3 GB
MAX_KEPT_BYTES = 80 << 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    folder: Path = tmp_path_factory.mktemp("service")
    with live_process(folder / "data", VIDLEX_SEND_TIMEOUT_SECONDS="5") as (url, process):
        for start in range(0, NUM_LABELS, 50):
            labels = [
                {"name": f"label {i:04}", "metadata": {"text": "x" * METADATA_BYTES}} for i in range(start, start + 50)
            ]
            httpx.post(f"{url}/labels", json={"labels": labels}, timeout=60, trust_env=False).raise_for_status()
        yield url, psutil.Process(process.pid)


def test_memory_stays_bounded_and_is_returned(service: tuple[str, psutil.Process]) -> None:
    url, process = service
    before = process.memory_info().rss
    for _ in range(2):
        peak = 0
        with ExitStack() as stack:
            for _ in range(60):
                connection = stack.enter_context(connect(url, receive_bytes=4096))
                connection.sendall(head("GET", "/labels?limit=1000"))
            for _ in range(30):
                peak = max(peak, process.memory_info().rss)
                time.sleep(0.1)
        assert peak - before < MAX_GROWTH_BYTES
    until(lambda: process.memory_info().rss - before < MAX_KEPT_BYTES)
    answer = exchange(url, head("GET", "/livez"))
    assert answer is not None
    assert answer.status == 200


def test_a_small_batch_of_existing_labels_has_no_large_answer(service: tuple[str, psutil.Process]) -> None:
    url, _ = service
    body = {"labels": [{"name": f"label {i:04}"} for i in range(NUM_LABELS)]}
    answer = httpx.post(f"{url}/labels?if_exists=return", json=body, timeout=60, trust_env=False)
    assert len(answer.content) < MAX_BATCH_ANSWER_BYTES + 2 * METADATA_BYTES + 600 * NUM_LABELS
    labels = [item["label"] for item in answer.json()["data"]]
    assert [label["name"] for label in labels] == [f"label {i:04}" for i in range(NUM_LABELS)]
    assert labels[0]["metadata"]
    assert not labels[0]["warnings"]
    assert not labels[-1]["metadata"]
    assert [warning["code"] for warning in labels[-1]["warnings"]] == ["metadata_not_shown"]
    whole = httpx.get(f"{url}/labels/{labels[-1]['id']}", timeout=60, trust_env=False).json()
    assert whole["metadata"]
    assert whole["etag"] == labels[-1]["etag"]


@pytest.mark.parametrize("filters", [{}, {"prefix": "label"}, {"q": "label"}])
def test_pages_end_at_their_size_and_miss_no_label(
    service: tuple[str, psutil.Process], filters: dict[str, str]
) -> None:
    url, _ = service
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        names: list[str] = []
        params: dict[str, str | int] = {"limit": 1000, **filters}
        while True:
            answer = client.get("/labels", params=params)
            assert len(answer.content) <= MAX_PAGE_BYTES + METADATA_BYTES + 1000
            page = answer.json()
            names += [label["name"] for label in page["data"]]
            if not page["has_more"]:
                break
            assert len(answer.content) > MAX_PAGE_BYTES // 2, "pages are not needlessly small"
            params["after"] = page["last_id"]
    assert names == [f"label {i:04}" for i in range(NUM_LABELS)]
