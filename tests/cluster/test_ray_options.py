"""`--device` and `--decode-workers` of `vidlex tag --engine ray`, without a cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("ray")

from vidlex.service.bulk.options import TagOptions
from vidlex.service.cluster import engine
from vidlex.service.cluster.tagging import ClusterLayout
from vidlex.service.commands.output import EXIT_USAGE, CommandError
from vidlex.service.commands.tag_engines import EngineChoice, open_engine

CHOICE = EngineChoice(
    name="ray",
    labels=("red",),
    labels_file=None,
    namespace=None,
    model="dummy",
    device=None,
    decode_workers=None,
    data_dir=None,
    url="",
    jobs=1,
    address=None,
)
CPUS, GPUS = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}


def test_layouts_of_devices() -> None:
    def num_encoders(resources: dict[str, float], **options: Any) -> int | None:
        return ClusterLayout(**options).resolved(resources).num_encoders

    assert (num_encoders(CPUS), num_encoders(GPUS)) == (0, 2)
    assert (num_encoders(CPUS, device="cpu"), num_encoders(GPUS, device="cpu")) == (0, 0)
    assert ClusterLayout(device="cpu", num_encoders=3).resolved(GPUS).encoder_gpus == 0
    assert num_encoders(GPUS, device="cuda") == 2
    with pytest.raises(ValueError, match="no GPU"):
        num_encoders(CPUS, device="cuda")


@pytest.mark.parametrize(
    ("device", "decode_workers", "layout", "labels_on"),
    [
        (None, None, ClusterLayout(), None),
        ("cpu", 3, ClusterLayout(max_workers=3, device="cpu"), "cpu"),
        ("cuda:all", 1, ClusterLayout(max_workers=1, device="cuda"), None),
    ],
)
def test_options_reach_the_cluster(
    monkeypatch: pytest.MonkeyPatch,
    device: str | None,
    decode_workers: int | None,
    layout: ClusterLayout,
    labels_on: str | None,
) -> None:
    opened: dict[str, Any] = {}

    class Opened:
        identity = busy = close = run_numbered = None

        def __init__(self, setup: Any, **options: Any) -> None:
            opened.update(options, setup=setup)

    monkeypatch.setattr(engine, "ClusterEngine", Opened)
    open_engine(replace(CHOICE, device=device, decode_workers=decode_workers))
    assert opened["layout"] == layout and opened["setup"].device == labels_on
    assert layout.initial_workers(CPUS, spare_cpus=0) == min(decode_workers or 8, 8)


def test_a_device_of_one_machine_is_refused() -> None:
    with pytest.raises(CommandError, match="auto, cpu or cuda") as caught:
        replace(CHOICE, device="cuda:1").check(TagOptions())
    assert caught.value.exit_code == EXIT_USAGE
