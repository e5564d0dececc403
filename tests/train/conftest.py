"""Fixtures that keep training of tiny models fast."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """More threads make tiny models slower, above all on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plotting the curves takes longer than training a tiny model."""
    monkeypatch.setattr("vidlex.model.train.loop.curves.plot_stage", lambda out, stage: None)
