"""A batch is submitted with its params; what its lines say comes later, and was not asked for its scope."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vidlex.service.errors import InvalidParameter
from vidlex.service.jobs.classify import JobVideos
from vidlex.service.jobs.records import Job
from vidlex.service.jobs.sources import SourceFile
from vidlex.service.schemas.classify import ClassifyParams
from vidlex.service.sharing.requester import Requester
from vidlex.service.views.keeping import keep_options, params_of_line


def test_a_line_of_a_batch_is_kept_only_if_the_batch_says_so() -> None:
    nothing: Any = None
    videos = JobVideos(nothing, nothing, nothing)
    job = Job(
        id="job_1", kind="batch", namespace="team", client="key", state="running", created_at_ms=0, queue_until_ms=0
    )
    file = SourceFile(Path("v.mp4"), "0" * 64, 1)
    requester = Requester("key", time.monotonic() + 5, threading.Event())
    with pytest.raises(InvalidParameter, match="batch"):
        videos.classify(file, ClassifyParams(keep=True), job, requester)


@pytest.mark.parametrize(
    ("uri", "own", "kept"),
    [
        ("https://files.example/v.mp4", None, "https://files.example/v.mp4"),
        ("s3://bucket/v.mp4", None, "s3://bucket/v.mp4"),
        ("https://files.example/v.mp4?signature=secret", None, None),
        ("https://files.example/v.mp4?signature=secret", "s3://bucket/v.mp4", "s3://bucket/v.mp4"),
        (None, None, None),
    ],
)
def test_the_address_of_a_job_is_kept_unless_it_may_hold_a_secret(
    uri: str | None, own: str | None, kept: str | None
) -> None:
    found = keep_options(ClassifyParams(keep=True, uri=own), uri=uri)
    assert found is not None and found.uri == kept
    assert keep_options(ClassifyParams(), uri=uri) is None


def test_a_line_of_a_batch_names_its_video() -> None:
    batch = ClassifyParams(keep=True, top_k=3)
    assert params_of_line(batch, "line-1", {"a": 1}) == ClassifyParams(
        keep=True, top_k=3, client_id="line-1", metadata={"a": 1}
    )
    own = ClassifyParams(keep=True, client_id="own", metadata={"b": 2})
    assert params_of_line(own, "line-1", {"a": 1}) == own
    assert params_of_line(batch, "x" * 300, None) == params_of_line(batch, "a\nb", None) == batch
    assert params_of_line(ClassifyParams(), "line-1", {"a": 1}) == ClassifyParams()
