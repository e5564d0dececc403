"""The number of CPUs: the cgroup's quota, as a container's files show it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vidlex.service.machine import cpus
from vidlex.service.machine.cpus import THREADS_VARIABLE, cpu_quota, limit_library_threads, num_cpus, visible_cpus
from vidlex.service.settings import Settings


@pytest.fixture
def fresh() -> Iterator[None]:
    num_cpus.cache_clear()
    yield
    num_cpus.cache_clear()


def tree(root: Path, cgroup: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_version_2_in_a_container(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/\n")
    assert cpu_quota(root) is None
    write(root / "sys/fs/cgroup/cpu.max", "150000 100000\n")
    assert cpu_quota(root) == 1.5
    write(root / "sys/fs/cgroup/cpu.max", "max 100000\n")
    assert cpu_quota(root) is None


def test_the_smallest_quota_of_the_groups_above_holds(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/system.slice/vidlex.service\n")
    write(root / "sys/fs/cgroup/system.slice/vidlex.service/cpu.max", "800000 100000")
    write(root / "sys/fs/cgroup/system.slice/cpu.max", "250000 100000")
    assert cpu_quota(root) == 2.5


@pytest.mark.parametrize("top", ["cpu", "cpu,cpuacct"])
def test_version_1_where_the_path_is_that_of_the_host(tmp_path: Path, top: str) -> None:
    root = tree(tmp_path, f"4:memory:/docker/abc\n3:{top}:/docker/abc\n0::/\n")
    write(root / f"sys/fs/cgroup/{top}/cpu.cfs_quota_us", "200000\n")
    write(root / f"sys/fs/cgroup/{top}/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(root) == 2.0
    write(root / f"sys/fs/cgroup/{top}/cpu.cfs_quota_us", "-1\n")
    assert cpu_quota(root) is None


@pytest.mark.parametrize("text", ["", "garbage", "0 0", "-5 100000", "1 2 3"])
def test_what_is_not_a_quota_is_none(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, "0::/../..\nnonsense\n0::/\n")
    write(root / "sys/fs/cgroup/cpu.max", text)
    assert cpu_quota(root) is None
    assert cpu_quota(tmp_path / "no-such-root") is None


@pytest.mark.usefixtures("fresh")
def test_decode_processes_and_library_threads_follow_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    monkeypatch.setattr(cpus, "visible_cpus", lambda: 64)
    monkeypatch.setattr(cpus, "cpu_quota", lambda: 2.5)
    assert num_cpus() == 3 and Settings().decode_workers == 3
    limit_library_threads()
    assert cpus.os.environ[THREADS_VARIABLE] == "3"
    monkeypatch.setenv(THREADS_VARIABLE, "7")
    limit_library_threads()
    assert cpus.os.environ[THREADS_VARIABLE] == "7", "the user's choice"


@pytest.mark.usefixtures("fresh")
def test_without_a_quota_libraries_choose_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    monkeypatch.setattr(cpus, "cpu_quota", lambda: None)
    assert num_cpus() == visible_cpus()
    limit_library_threads()
    assert THREADS_VARIABLE not in cpus.os.environ
