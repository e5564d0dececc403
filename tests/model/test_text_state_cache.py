"""States on disk: equal to those in memory, computed once, continued after a kill, never taken from a damaged file."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.tiny import tiny_clip_text, write_llm
from vidlex.model.config import LabelEncoderConfig
from vidlex.model.text import label_encoder as label_encoder_module
from vidlex.model.text import state_cache as module
from vidlex.model.text.formats import format_bytes, format_seconds
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.text.load_llm import load_llm
from vidlex.model.text.state_cache import cached_states, states_digest

CONFIG = LabelEncoderConfig(
    num_prefixes=2, num_attributes=2, tokens_per_attribute=2, prompting_width=16, prompting_layers=1,
    prompting_heads=2, prompt_version="v1",
)  # fmt: skip
NAMES = ["x", "golden retriever", "a man is riding a very old bicycle", "cat", "spinning", "a dog", "beach"]


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def encoder(llm_folder, monkeypatch):
    monkeypatch.setattr(label_encoder_module, "MAX_ROWS_CPU", 4)  # two labels a chunk, four chunks
    return build(llm_folder)


def build(folder: Path, **changes) -> LabelEncoder:
    return LabelEncoder(load_llm(folder), tiny_clip_text(), replace(CONFIG, **changes)).eval()


@pytest.fixture
def computed(encoder, monkeypatch) -> list[str]:
    """The names that went through the language model."""
    names: list[str] = []
    soft_attributes = encoder.soft_attributes

    def recording(chunk):
        names.extend(chunk)
        return soft_attributes(chunk)

    monkeypatch.setattr(encoder, "soft_attributes", recording)
    return names


def data_file(folder: Path) -> Path:
    (path,) = folder.glob("*.bin")
    return path


def test_the_states_are_those_in_memory_and_computed_once(encoder, computed, tmp_path):
    expected = encoder.cache_states(NAMES)
    computed.clear()
    lines: list[str] = []
    states = cached_states(encoder, NAMES, tmp_path / "new", report=lines.append)
    assert torch.equal(states, expected) and states.dtype == torch.float32
    size = len(NAMES) * 2 * 2 * 2 * encoder.llm.width * 4
    assert data_file(tmp_path / "new").stat().st_size == size
    assert lines[0].startswith(f"language model states of 7 labels: {format_bytes(size)} in {tmp_path}")
    assert sorted(computed) == sorted(NAMES)
    computed.clear()
    lines.clear()
    assert torch.equal(cached_states(encoder, NAMES, tmp_path / "new", report=lines.append), expected)
    assert not computed and not lines


def test_the_result_is_mapped_and_private(encoder, tmp_path):
    states = cached_states(encoder, NAMES, tmp_path, report=str)
    path = data_file(tmp_path)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) in maps.read_text()
    before = path.read_bytes()
    states.zero_()
    assert path.read_bytes() == before


def test_float16(encoder, tmp_path):
    states = cached_states(encoder, NAMES, tmp_path, report=str, dtype=torch.float16, name="half")
    assert torch.equal(states, encoder.cache_states(NAMES, dtype=torch.float16))
    assert data_file(tmp_path).name.startswith("half-")
    assert cached_states(encoder, [], tmp_path, report=str).shape == (0, 2, 2, 2, encoder.llm.width)


def run_and_die(work: Callable[[], object], at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``work`` in a process that is killed with SIGKILL before its ``at``-th write reaches the disk."""
    process = os.fork()
    if not process:
        counter, fsync = itertools.count(1), os.fsync

        def fsync_or_die(descriptor: int) -> None:
            if next(counter) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        try:
            monkeypatch.setattr(os, "fsync", fsync_or_die)
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("at", [1, 2, 3, 6, 7])
def test_it_continues_after_a_kill(encoder, computed, tmp_path, monkeypatch, at):
    expected = encoder.cache_states(NAMES)
    run_and_die(lambda: cached_states(encoder, NAMES, tmp_path, report=str), at, monkeypatch)
    computed.clear()
    assert torch.equal(cached_states(encoder, NAMES, tmp_path, report=str), expected)
    num_finished = at // 2  # each chunk syncs its data, then its line in the journal
    assert len(computed) == len(NAMES) - 2 * num_finished


def test_an_incomplete_line_of_the_journal_is_ignored(encoder, computed, tmp_path):
    expected = cached_states(encoder, NAMES, tmp_path, report=str).clone()
    journal = data_file(tmp_path).with_suffix(".journal")
    text = journal.read_text()
    for cut in (len(text) - 1, len(text) - 10, len(text) // 2, 3):
        journal.write_text(text[:cut])
        computed.clear()
        assert torch.equal(cached_states(encoder, NAMES, tmp_path, report=str), expected)
        assert bool(computed) == (cut != len(text) - 1)  # that is the last line's end only
    journal.write_text(
        '[1, "x"]\n[-1, 2]\n{}\nnull\n[99, "x"]\n[[], ""]\n\udcff'.encode("utf-8", "surrogateescape").decode("latin-1")
    )
    computed.clear()
    assert torch.equal(cached_states(encoder, NAMES, tmp_path, report=str), expected)
    assert len(computed) == len(NAMES)


def test_damaged_chunks_are_computed_again(encoder, computed, tmp_path):
    expected = cached_states(encoder, NAMES, tmp_path, report=str).clone()
    path = data_file(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[0] ^= 1  # a bit of the first label
    path.write_bytes(damaged)
    computed.clear()
    assert torch.equal(cached_states(encoder, NAMES, tmp_path, report=str), expected)
    assert len(computed) == 2 and "x" in computed
    for wrong in (b"", bytes(damaged[:-1]), bytes(len(damaged)), bytes(damaged) + b"more"):
        path.write_bytes(wrong)
        computed.clear()
        assert torch.equal(cached_states(encoder, NAMES, tmp_path, report=str), expected)
        assert len(computed) == len(NAMES)


def test_a_file_of_another_encoder_is_not_used(encoder, computed, tmp_path, llm_folder):
    other = build(llm_folder, seed=5)
    cached_states(other, NAMES, tmp_path / "other", report=str)
    expected = cached_states(encoder, NAMES, tmp_path, report=str).clone()
    for suffix in (".bin", ".journal"):  # under our name
        shutil.copy(data_file(tmp_path / "other").with_suffix(suffix), data_file(tmp_path).with_suffix(suffix))
    computed.clear()
    assert torch.equal(cached_states(encoder, NAMES, tmp_path, report=str), expected)
    assert len(computed) == len(NAMES)


def test_the_digest_covers_everything_that_determines_the_states(encoder, llm_folder, tmp_path):
    base = states_digest(encoder, NAMES)
    assert base == states_digest(build(llm_folder), NAMES)
    assert base == states_digest(build(llm_folder, renormalize=True, prompting_width=32), NAMES)  # not the LLM's part
    folder = shutil.copytree(llm_folder, tmp_path / "llm")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    half = LabelEncoder(load_llm(llm_folder, dtype=torch.bfloat16), tiny_clip_text(), CONFIG)
    others = [
        states_digest(encoder, [*NAMES[1:], NAMES[0]]),
        states_digest(encoder, NAMES[:-1]),
        states_digest(encoder, NAMES, torch.float16),
        states_digest(half, NAMES),
        states_digest(build(folder), NAMES),
        states_digest(build(write_llm(tmp_path / "seed", seed=1)), NAMES),
        *(
            states_digest(build(llm_folder, **change), NAMES)
            for change in (
                {"seed": 1}, {"prompt_version": "v2"}, {"feedback": "soft"}, {"num_prefixes": 3},
                {"num_attributes": 1, "tokens_per_attribute": 4}, {"tokens_per_attribute": 3},
            )
        ),
    ]  # fmt: skip
    assert len({base, *others}) == 1 + len(others)


def test_a_full_disk_is_reported_before_the_first_pass(encoder, computed, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 990, 10))
    with pytest.raises(OSError, match=r"do not fit in .*: 10 bytes are free"):
        cached_states(encoder, NAMES, tmp_path, report=str)
    assert not computed and not list(tmp_path.glob("*.bin"))


def test_two_processes_share_the_work(encoder, computed, tmp_path):
    process = os.fork()
    if not process:
        status = 1
        try:
            cached_states(encoder, NAMES, tmp_path, report=str)
            (tmp_path / "count").write_text(str(len(computed)))
            status = 0
        finally:
            os._exit(status)
    states = cached_states(encoder, NAMES, tmp_path, report=str)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert sorted((len(computed), int((tmp_path / "count").read_text()))) == [0, len(NAMES)]
    assert torch.equal(states, encoder.cache_states(NAMES))


def test_progress_has_the_rate_and_the_time_left(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REPORT_EVERY_SECONDS", 0.0)
    seconds = itertools.count(100.0, 30.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(seconds))
    lines: list[str] = []
    cached_states(encoder, NAMES, tmp_path, report=lines.append)
    assert lines[1:] == [
        "2 of 7 labels, 0.0667 per second, 1 min 15 s left",
        "4 of 7 labels, 0.0667 per second, 45 s left",
        "6 of 7 labels, 0.0667 per second, 15 s left",
        "7 of 7 labels, 7 in 2 min 30 s",
    ]
    assert (format_seconds(59.4), format_seconds(3600)) == ("59 s", "60 min 0 s")
    assert [format_bytes(n) for n in (5, 1234, 2.5e6, 71e9)] == ["5 bytes", "1.23 KB", "2.5 MB", "71 GB"]


def test_a_model_without_a_folder_cannot_be_kept(encoder, tmp_path):
    encoder.llm.folder = None
    with pytest.raises(ValueError, match="without a folder"):
        cached_states(encoder, NAMES, tmp_path, report=str)
