"""Atomic replacement of files, and the seeds of training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vidlex.model.files import replace_atomically
from vidlex.model.seeds import Stream, generator_for, seed_for


@pytest.mark.parametrize("is_shared", [False, True])
def test_file_is_replaced_only_on_success(tmp_path: Path, is_shared: bool) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replace_atomically(path, is_shared=is_shared) as temporary:
        temporary.write_text("part")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replace_atomically(path, is_shared=is_shared, is_synced=True) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_leftover_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with replace_atomically(path) as temporary:
        leftover = temporary
        temporary.write_text("new")
    leftover.write_text("a longer leftover")
    with replace_atomically(path) as temporary:
        temporary.write_text("newer")
    assert path.read_text() == "newer" and list(tmp_path.iterdir()) == [path]


def test_seeds_are_those_of_recorded_runs() -> None:
    assert seed_for(3, Stream.VIDEO, 7) == 3 * 10_000_019 + 50_000_000 + 7
    assert len({int(stream) for stream in Stream}) == len(Stream)
    drawn = torch.rand(3, generator=generator_for(3, Stream.VIDEO, 7))
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(80_000_064)))
