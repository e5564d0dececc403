"""Damaged and lost append-only files of the embedded store: never a silent start without labels, always a way back."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.processes import until
from support.stores import add
from vidlex.migrations.runner import migrate
from vidlex.service.cli import app
from vidlex.service.errors import StoreUnavailable
from vidlex.service.labels.embedded.log_repair import check_log, repair_log
from vidlex.service.labels.embedded.server import EmbeddedStore
from vidlex.service.labels.embedded.server_files import LogUnreadable
from vidlex.service.labels.store.label_store import LabelStore
from vidlex.service.labels.store.verify import verify_namespace

runner = CliRunner()


def write_labels(data_dir: Path, num: int, *, rewrite: bool = False) -> Path:
    """Labels, each in a transaction; with ``rewrite`` the first half is in a snapshot. Returns the folder of files."""
    with EmbeddedStore(data_dir) as embedded:
        migrate(embedded.client())
        store = LabelStore(embedded.client())
        for i in range(num):
            if rewrite and i == num // 2:
                embedded.client().bgrewriteaof()
                until(lambda: any((data_dir / "store/appendonlydir").glob("*.2.base.rdb")))
                until(lambda: not any((data_dir / "store/appendonlydir").glob("*.1.incr.aof")))
            add(store, f"label {i}", aliases=(f"other {i}",), categories=("thing",))
    return data_dir / "store" / "appendonlydir"


def names_in(data_dir: Path) -> set[str]:
    with EmbeddedStore(data_dir) as embedded:
        client = embedded.client()
        assert verify_namespace(client) == []
        return {label.name for label in LabelStore(client).list(1000).data}


def assert_refused(data_dir: Path, expected: dict[str, bytes]) -> None:
    with pytest.raises(LogUnreadable, match="vidlex store"):
        EmbeddedStore(data_dir).start()
    assert files_of(data_dir / "store" / "appendonlydir") == expected


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def remove_manifest(folder: Path) -> None:
    (folder / "appendonly.aof.manifest").unlink()


def remove_newest(folder: Path) -> None:
    next(folder.glob("*.incr.aof")).unlink()


@pytest.mark.parametrize("lose", [remove_manifest, remove_newest, shutil.rmtree])
def test_lost_files_are_noticed_before_anything_is_written(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    folder = write_labels(tmp_path, 4, rewrite=True)
    before = files_of(folder)
    lose(folder)
    assert_refused(tmp_path, files_of(folder))
    if lose is not shutil.rmtree:
        for name, content in before.items():
            (folder / name).write_bytes(content)
        assert len(names_in(tmp_path)) == 4


def test_files_lost_under_a_running_service_are_not_replaced_by_empty_ones(tmp_path: Path) -> None:
    folder = write_labels(tmp_path, 2)
    with EmbeddedStore(tmp_path) as embedded:
        store = LabelStore(embedded.client())
        aside = folder.rename(tmp_path / "aside")
        pid = embedded.pid
        assert pid is not None
        embedded.client().shutdown(nosave=True)
        until(lambda: embedded.pid != pid)
        with pytest.raises(StoreUnavailable):
            store.revision()
        aside.rename(folder)
        until(lambda: _answers(store))
        assert store.revision() == 2


def _answers(store: LabelStore) -> bool:
    try:
        store.ping()
    except StoreUnavailable:
        return False
    return True


def test_a_lost_manifest_is_written_again(tmp_path: Path) -> None:
    folder = write_labels(tmp_path, 6, rewrite=True)
    remove_manifest(folder)
    done = runner.invoke(app, ["store", "repair", "--data-dir", str(tmp_path)])
    assert done.exit_code == 0 and "manifest" in done.stdout, done.output
    assert names_in(tmp_path) == {f"label {i}" for i in range(6)}


@pytest.mark.parametrize("seed", range(6))
def test_only_the_damaged_transactions_are_lost(tmp_path: Path, seed: int) -> None:
    """Zeros, garbage and missing bytes in the middle, over one or several transactions, and at the end."""
    num_labels = 40
    folder = write_labels(tmp_path, num_labels)
    (path,) = folder.glob("*.incr.aof")
    raw = path.read_bytes()
    rng = random.Random(seed)
    start = rng.randrange(1000, len(raw) - 3000)
    length = rng.choice([1, 30, 700, 2000])
    middle = {0: b"\0" * length, 1: rng.randbytes(length), 2: b""}[seed % 3]
    tail = b"\0" * 4096 if seed % 2 else raw[-30:-10]
    path.write_bytes(raw[:start] + middle + raw[start + length :] + tail)
    # A damaged byte within a value leaves every command whole; the label's own checksum is for that.
    damaged = files_of(folder)
    assert_refused(tmp_path, damaged)
    checked = runner.invoke(app, ["store", "check", "--data-dir", str(tmp_path), "--json"])
    assert checked.exit_code == 1 and json.loads(checked.stdout.splitlines()[0])["problems"]
    assert files_of(folder) == damaged
    done = runner.invoke(app, ["store", "repair", "--data-dir", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert files_of(Path(report["copy"])) == damaged
    found = names_in(tmp_path)
    most = 1 + length // 600 + 2  # transactions of more than 600 bytes
    assert num_labels - most <= len(found) <= num_labels


def test_a_cut_file_loses_its_last_transaction_only(tmp_path: Path) -> None:
    folder = write_labels(tmp_path, 10)
    (path,) = folder.glob("*.incr.aof")
    path.write_bytes(path.read_bytes()[:-1] + b"\0" * 100)
    report = repair_log(tmp_path / "store")
    assert report.copy is not None and not check_log(tmp_path / "store").problems
    assert names_in(tmp_path) == {f"label {i}" for i in range(9)}


def test_whole_files_are_not_touched(tmp_path: Path) -> None:
    folder = write_labels(tmp_path, 3, rewrite=True)
    before = files_of(folder)
    assert check_log(tmp_path / "store").is_whole
    report = repair_log(tmp_path / "store")
    assert report.is_whole and report.copy is None and files_of(folder) == before


def test_a_damaged_snapshot_needs_a_backup_or_consent(tmp_path: Path) -> None:
    folder = write_labels(tmp_path, 20, rewrite=True)
    (path,) = folder.glob("*.base.rdb")
    raw = bytearray(path.read_bytes())
    raw[200:260] = b"\0" * 60
    path.write_bytes(raw)
    before = files_of(folder)
    assert_refused(tmp_path, before)
    failed = runner.invoke(app, ["store", "repair", "--data-dir", str(tmp_path)])
    assert failed.exit_code == 1 and "Restore a backup" in failed.stderr
    assert files_of(folder) == before
    accepted = runner.invoke(app, ["store", "accept", "--start-empty", "--data-dir", str(tmp_path), "--json"])
    assert accepted.exit_code == 0, accepted.output
    assert files_of(Path(json.loads(accepted.stdout)["set_aside"])) == before
    assert names_in(tmp_path) == set()


def test_repair_and_check_leave_a_running_service_alone(tmp_path: Path) -> None:
    write_labels(tmp_path, 2)
    with EmbeddedStore(tmp_path) as embedded:
        pid = embedded.pid
        refused = runner.invoke(app, ["store", "repair", "--data-dir", str(tmp_path)])
        assert refused.exit_code == 1 and "in use" in refused.stderr
        checked = runner.invoke(app, ["store", "check", "--data-dir", str(tmp_path)])
        assert checked.exit_code == 0, checked.output
        assert embedded.pid == pid and embedded.client().ping()
    new = runner.invoke(app, ["store", "check", "--data-dir", str(tmp_path / "new")])
    assert new.exit_code == 0 and "stored anything" in new.stdout, new.output
