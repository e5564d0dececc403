"""Real clusters of several raylets: a lost node loses no row and doubles none, and rows are those of one machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from support.ray_cluster import RayCluster, ray_cluster
from support.serving import COLOURS, colour_video, wait_until
from vidlex.ray import ClusterLayout, StageMetrics, TagOptions, tag, write_parts
from vidlex.service.bench.load import with_unique_bytes
from vidlex.service.bulk.engine import EngineIdentity, EngineUnavailable
from vidlex.service.bulk.local.engine import LocalEngine
from vidlex.service.bulk.local.opening import open_engine
from vidlex.service.bulk.local.setup import LocalSetup
from vidlex.service.bulk.rows import result_of, row_of, rows_of
from vidlex.service.bulk.run import Tagged, run_numbered
from vidlex.service.bulk.source import VideoSource
from vidlex.service.cluster.encoders import RemoteEncoder
from vidlex.service.cluster.engine import ClusterEngine
from vidlex.service.cluster.parts import done_rows

NUM_VIDEOS = 60
SETUP = LocalSetup(model="dummy", labels=("red", "green", "blue", "red then blue"))
OPTIONS = TagOptions(top_k=3)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(num_cpus=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[VideoSource]:
    folder = tmp_path_factory.mktemp("videos")
    pairs = list(itertools.permutations(list(COLOURS)[:4], 2))
    distinct = [colour_video(folder / f"{a}-{b}.mp4", a, b).read_bytes() for a, b in pairs]
    paths = []
    for number in range(NUM_VIDEOS):
        path = folder / f"{number:03}.mp4"
        path.write_bytes(with_unique_bytes(distinct[number % len(distinct)]))
        paths.append(path)
    paths[5].write_bytes(b"not a video")
    paths[40].unlink()
    return [VideoSource(str(path), f"id-{number}", {"shelf": "a"}) for number, path in enumerate(paths)]


@pytest.fixture(scope="module")
def local_engine() -> Iterator[LocalEngine]:
    engine = open_engine(SETUP)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def identity(local_engine: LocalEngine) -> EngineIdentity:
    return local_engine.identity


@pytest.fixture(scope="module")
def expected(local_engine: LocalEngine, sources: list[VideoSource]) -> list[Tagged]:
    found = sorted(run_numbered(sources, local_engine, OPTIONS), key=lambda one: one.order)
    failures = {one.order: one.result.failure.code for one in found if one.result.failure is not None}
    assert len(found) == NUM_VIDEOS and set(failures) == {5, 40}
    return found


def same(found: list[Tagged], expected: list[Tagged]) -> None:
    assert [one.order for one in found] == [one.order for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert as_row(one) == as_row(other)


def as_row(tagged: Tagged) -> dict[str, Any]:
    row = row_of(tagged.result, tagged.file_version)
    return {name: value for name, value in row.items() if name != "timings_ms"}


def tag_and_lose(
    engine: ClusterEngine, sources: list[VideoSource], node: Any, lose: Callable[[Any], None]
) -> list[Tagged]:
    """The node is lost once it has tagged videos and the driver has some of the rows."""
    found, is_lost = [], False
    for one in engine.run_numbered(sources, OPTIONS):
        found.append(one)
        if not is_lost and node.node_id in engine.summary().node_ids:
            lose(node)
            is_lost = True
            num_before = len(found)
    assert is_lost and num_before < NUM_VIDEOS
    return sorted(found, key=lambda one: one.order)


def test_a_killed_node_loses_no_row(cluster: RayCluster, sources: list[VideoSource], expected: list[Tagged]) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    engine = ClusterEngine(SETUP, layout=ClusterLayout(num_encoders=0))
    assert len(ray.nodes()) == 3
    try:
        found = tag_and_lose(engine, sources, nodes[0], cluster.kill_node)
        summary = engine.summary()
    finally:
        engine.close()
        cluster.remove_node(nodes[1])
    same(found, expected)
    assert summary.num_encoders == 0 and summary.decode_busy_share is not None and summary.decode_busy_share > 0


def is_alive(encoder: Any) -> bool:
    try:
        ray.get(encoder.use.remote())
    except ray.exceptions.ActorDiedError:
        return False
    except ray.exceptions.RayError:  # it is being restarted
        pass
    return True


def test_a_removed_node_with_an_encoder(
    cluster: RayCluster, sources: list[VideoSource], expected: list[Tagged]
) -> None:
    """Encoders take frames through shared memory; those of the lost one go to the other."""
    nodes = [cluster.add_node(num_cpus=2, num_gpus=1) for _ in range(2)]
    engine = ClusterEngine(SETUP)
    try:
        assert engine.summary().num_encoders == 2
        found = tag_and_lose(engine, sources, nodes[0], cluster.remove_node)
        summary = engine.summary()
        for encoder in engine.encoders:
            ray.kill(encoder)
        wait_until(lambda: not any(map(is_alive, engine.encoders)), "the encoders are not killed")
        with pytest.raises(EngineUnavailable, match="No encoder answers"):
            RemoteEncoder(engine.encoders, patience_seconds=1.0)
    finally:
        engine.close()
        cluster.remove_node(nodes[1])
    same(found, expected)
    assert summary.device_busy_share is not None and summary.device_busy_share > 0


def test_parts_and_their_continuation(
    cluster: RayCluster,
    sources: list[VideoSource],
    expected: list[Tagged],
    identity: EngineIdentity,
    tmp_path: Path,
) -> None:
    node = cluster.add_node(num_cpus=1)
    out = tmp_path / "out"
    table = pa.table({"uri": [source.uri for source in sources], "id": [source.client_id for source in sources]})
    table = table.append_column("shelf", [["a"] * len(sources)])

    def job(rows: pa.Table, **options: Any) -> Any:
        dataset = ray.data.from_arrow(rows, override_num_blocks=4)
        labels = SETUP.labels
        return tag(dataset, model="dummy", labels=labels, options=OPTIONS, rows_per_task=4, **options)

    try:
        assert write_parts(job(table.slice(0, 30)), str(out), min_rows_per_file=8) == 30
        first = {path.name for path in out.iterdir()}
        (out / "torn.parquet").write_bytes(b"PAR1 not whole")
        metrics = StageMetrics()
        rest = job(table, resume_from=str(out), metrics=metrics)
        assert write_parts(rest, str(out), min_rows_per_file=8) == NUM_VIDEOS - 30
        assert metrics.summary().num_skipped == 30
    finally:
        cluster.remove_node(node)
    assert len(first) <= 4  # of at least 8 rows, but for the last
    rows = [row for path in out.glob("part-*-*.parquet") for row in rows_of(pq.read_table(path))]
    failed = {sources[5].uri, sources[40].uri}
    for retry_failed in (False, True):
        done = done_rows(str(out), identity, OPTIONS, retry_failed=retry_failed)
        again = {row["uri"] for row in rows if not done.has_source(row["uri"], row["file_version"])}
        assert again == (failed if retry_failed else set())
    assert len(done_rows(str(out), replace(identity, vocabulary="another"), OPTIONS)) == 1  # the file that is not there
    found = [Tagged(int(str(row["id"])[3:]), result_of(row), row["file_version"]) for row in rows]
    same(sorted(found, key=lambda one: one.order), expected)
