"""Who is let in, who is told to come back when, and deadlines."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving import assert_problem, classify, colour_video, serving

from service.errors import DeadlineExceeded, Overloaded
from service.routes.context import Admission


def test_refused_clients_are_told_to_come_back_one_after_another() -> None:
    """Two workers, half a second each: a place is free every quarter of a second."""
    admission = Admission(1, 2)
    told = []
    with admission.admit():
        for _ in range(400):
            with pytest.raises(Overloaded) as refused:
                admission.check()
            told.append(refused.value.retry_after_seconds)
    assert told[:9] == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert max(told) == 60
    admission.check()  # and a free place is given to whoever comes


def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once() -> None:
    admission = Admission(8, 1)
    admission.check_deadline(0.001)  # nobody waits: it may be tried
    with admission.admit(), admission.admit():
        admission.check_deadline(2.0)
        with pytest.raises(DeadlineExceeded):
            admission.check_deadline(1.4)


def test_a_deadline_over_http(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as client:
        video = colour_video(tmp_path / "video.mp4", "red")
        assert classify(client, video, deadline_ms=60_000).status_code == 200
        assert_problem(classify(client, video, deadline_ms=1), 504, "deadline_exceeded")
        assert classify(client, video, deadline_ms=0).status_code == 422
