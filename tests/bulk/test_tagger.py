"""What only `Tagger` has: its arguments, batches of tables, and copies in other processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from support.serving import colour_video
from vidlex import Tagger, errors
from vidlex.service.bulk.rows import schema


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("VIDLEX_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("videos")
    colour_video(made / "1-red.mp4", "red")
    colour_video(made / "2-mixed.mp4", "red", "green", "blue")
    (made / "3-text.mp4").write_bytes(b"no video" * 100)
    return made


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        ({"model": "no-such-model", "labels": ["red"]}, errors.NotFound, "model_not_found"),
        ({"labels": ["red", " "]}, errors.RequestInvalid, "invalid_parameter"),
        ({"labels": []}, errors.RequestInvalid, "invalid_parameter"),
        ({"labels": ["word " * 20]}, errors.LabelInvalid, "label_text_invalid"),
        ({"labels_file": "/nowhere/labels.txt"}, errors.RequestInvalid, "invalid_parameter"),
        ({"namespace": "default"}, errors.NotFound, "not_found"),
        ({"labels": ["red"], "device": "warp:9"}, errors.ConfigurationInvalid, "client_configuration"),
        ({"labels": ["red"], "decode_workers": 0}, errors.ConfigurationInvalid, "client_configuration"),
    ],
)
def test_what_cannot_be_opened_has_a_code(
    tmp_path: Path, arguments: dict[str, Any], kind: type[errors.VidlexClientError], code: str
) -> None:
    tagger = Tagger(**{"model": "dummy", "data_dir": tmp_path, **arguments})
    with pytest.raises(kind) as caught:
        tagger.open()
    assert caught.value.code == code


@pytest.mark.parametrize(
    "arguments", [{}, {"labels": ["red"], "namespace": "default"}, {"labels": "red"}, {"labels": ["red"], "top_k": -1}]
)
def test_arguments_that_do_not_go_together_are_refused_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(errors.RequestInvalid) as caught:
        Tagger("dummy", **arguments)
    assert caught.value.code == "invalid_parameter"


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tagger]:
    labels = ["green", {"name": "red", "threshold": 0.8}]
    with Tagger("dummy", labels=labels, data_dir=tmp_path_factory.mktemp("own"), decode_workers=1, top_k=1) as made:
        yield made


def test_tag_one_and_its_defaults(tagger: Tagger, folder: Path) -> None:
    result = tagger.tag_one(folder / "1-red.mp4")
    assert [(label.id, label.name, label.threshold) for label in result.labels] == [(None, "red", 0.8)]
    assert len(tagger.tag_one(folder / "1-red.mp4", top_k=0).labels) == 2
    assert tagger.identity.num_labels == 2


def test_a_labels_file_has_the_labels_of_a_list(tagger: Tagger, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("name,threshold\nred,0.8\ngreen,\n")
    with Tagger("dummy", labels_file=tmp_path / "labels.csv", data_dir=tmp_path, top_k=1) as other:
        assert other.identity == tagger.identity
        assert other.tag_one(folder / "2-mixed.mp4").labels == tagger.tag_one(folder / "2-mixed.mp4").labels


def test_batches_of_tables_become_rows(tagger: Tagger, folder: Path) -> None:
    uris = [str(folder / name) for name in ("3-text.mp4", "1-red.mp4")]
    table = tagger.tag_batch(uris)
    assert table.schema.equals(schema()) and table["uri"].to_pylist() == uris
    assert table["error_code"].to_pylist() == ["unsupported_media", None]
    assert table["matched"].to_pylist() == [None, ["red"]]
    arrow = tagger(pa.table({"uri": uris}))
    assert arrow.drop_columns(["timings_ms"]).equals(table.drop_columns(["timings_ms"]))
    (frame,) = tagger.map_in_pandas(iter([pd.DataFrame({"uri": uris})]))
    assert isinstance(frame, pd.DataFrame) and list(frame["uri"]) == uris
    assert frame["labels"][1][0]["name"] == "red"


def test_a_copy_works_in_another_process(tagger: Tagger, folder: Path) -> None:
    assert len(pickle.dumps(tagger)) < 2000  # the arguments, not the model
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        result = processes.submit(tagger.tag_one, folder / "1-red.mp4").result()
    assert result.labels == tagger.tag_one(folder / "1-red.mp4").labels


FORKED = """
import os, sys
from vidlex import Tagger
tagger = Tagger("dummy", labels=["red"], data_dir=sys.argv[2], decode_workers=1)
assert tagger.tag_one(sys.argv[1]).failure is None
child = os.fork()
if child == 0:
    ok = tagger.tag_one(sys.argv[1]).failure is None
    tagger.close()
    os._exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert tagger.tag_one(sys.argv[1]).failure is None  # its processes live
print("done")
"""


def test_a_forked_process_opens_its_own_engine(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(folder / "1-red.mp4"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr  # nothing is logged to stdout


def test_importing_it_is_light() -> None:
    code = (
        "import sys; from vidlex import Tagger; Tagger('dummy', labels=['red']); "
        "print(*sorted({'torch', 'numpy', 'pyarrow', 'pandas', 'av', 'redis'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_there_is_a_decode_process_per_cpu_unless_it_is_set(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidlex.service.bulk.local.opening.num_cpus", lambda: 3)
    with Tagger("dummy", labels=["red"], data_dir=tmp_path) as tagger:
        assert tagger.open().busy().num_decoders == 3
    monkeypatch.setenv("VIDLEX_DECODE_WORKERS", "1")
    with Tagger("dummy", labels=["red"], data_dir=tmp_path) as tagger:
        assert tagger.open().busy().num_decoders == 1


def test_a_missing_package_is_named_with_its_extra() -> None:
    code = (
        "import sys; sys.modules['structlog'] = None\n"
        "from vidlex import Tagger, errors\n"
        "try: Tagger('dummy', labels=['red']).open()\n"
        "except errors.ConfigurationInvalid as error: print(error.code, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("package_missing") and "structlog" in done.stdout and "vidlex[server]" in done.stdout


def test_a_closed_tagger_opens_again(folder: Path, tmp_path: Path) -> None:
    tagger = Tagger("dummy", labels=["red"], data_dir=tmp_path, decode_workers=1)
    for _ in range(2):
        with tagger:
            assert tagger.tag_one(folder / "1-red.mp4").failure is None
