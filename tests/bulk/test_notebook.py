"""A real notebook shows results as a table with pictures; nothing in a result becomes markup."""

from __future__ import annotations

import base64
import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

from support.serving import colour_video
from vidlex.service.bulk.local.notebook import MAX_ROWS, TagResults
from vidlex.service.bulk.local.thumbnails import thumbnails
from vidlex.service.bulk.results import Receipt, Stretch, TagFailure, TaggedLabel, TagResult, VideoFacts

NASTY = "<img src=x onerror=alert(1)>\"'&"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("videos")
    colour_video(made / "red.mp4", "red")
    colour_video(made / "blue & <b>.mp4", "blue")
    (made / "text.mp4").write_bytes(b"no video" * 100)
    return made


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def picture_of(source: str) -> Any:
    """Decoded from the data URI."""
    head, _, data = source.partition(",")
    assert head == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    picture.load()
    assert picture.format == "JPEG"
    return picture


def test_a_notebook_shows_a_table_with_pictures(folder: Path, tmp_path: Path) -> None:
    cells = [
        "import sys\nfrom vidlex import Tagger",
        f"with Tagger('dummy', labels=['red', 'blue'], data_dir={str(tmp_path)!r}, decode_workers=1) as tagger:\n"
        f"    results = tagger.tag_all({str(folder)!r})",
        "results",
        # No decoder was loaded where the notebook's own code runs.
        "print(sorted({'av', 'torchcodec', 'cv2'} & set(sys.modules)))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    kernel = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
    NotebookClient(notebook, timeout=180, **_kernel(tmp_path, kernel)).execute()
    (output,) = notebook.cells[2].outputs
    shown = Tags(output["data"]["text/html"])
    assert shown.names.count("table") == 1 and shown.names.count("tr") == 4
    assert len(shown.images) == 2  # none of the broken one
    blue, red = map(picture_of, shown.images)
    assert blue.size == red.size == (160, 96)
    for picture, channel in ((red, 0), (blue, 2)):
        pixel = picture.convert("RGB").getpixel((80, 48))
        assert max(range(3), key=pixel.__getitem__) == channel
    assert "blue & <b>.mp4" in shown.text
    assert "unsupported_media" in shown.text and "0.99" in shown.text
    assert output["data"]["text/plain"] == "TagResults(3 videos, 1 failed)"
    assert notebook.cells[3].outputs[0]["text"] == "[]\n"
    assert not notebook.cells[1].outputs  # nothing is logged into the notebook


def _kernel(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """A kernel of this interpreter, whatever is installed for the user."""
    place = folder / "kernels" / "here"
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(json.dumps({**spec, "display_name": "here", "language": "python"}))
    specs = KernelSpecManager(kernel_dirs=[str(folder / "kernels")])
    return {"km": AsyncKernelManager(kernel_name="here", kernel_spec_manager=specs)}


def result_of(uri: str, **changes: Any) -> TagResult:
    label = TaggedLabel("lbl_1", NASTY, 0.75, 0.5, True, (Stretch(0, 1, 0, 0.75),))
    receipt = Receipt("d", "e", "m", "f", None, "v", None, "uniform", 1, 0)
    fields: dict[str, Any] = {"video": VideoFacts(1500, 0, 160, 96, 10.0, "h264"), "labels": [label]}
    return TagResult(**{"uri": uri, "receipt": receipt, **fields, **changes})


def test_everything_is_escaped() -> None:
    failed = TagResult(f"/x/{NASTY}", failure=TagFailure("undecodable_video", NASTY))
    results = TagResults([result_of(f"s3://bucket/{NASTY}.mp4"), failed])
    text = results._repr_html_()
    shown = Tags(text)
    assert set(shown.names) <= {"div", "style", "p", "table", "thead", "tbody", "tr", "th", "td", "br", "span", "b"}
    assert shown.text.count(NASTY) == 4  # two names, the label and the detail
    assert "<img" not in text


def test_only_the_first_are_shown(tmp_path: Path) -> None:
    results = TagResults(result_of(f"s3://bucket/{number}.mp4") for number in range(MAX_ROWS + 7))
    shown = Tags(results._repr_html_())
    assert shown.names.count("tr") == MAX_ROWS + 1
    assert "7 more" in shown.text and f"{MAX_ROWS + 7} videos" in shown.text


def test_it_is_a_sequence() -> None:
    good, bad = result_of("a"), TagResult("b", failure=TagFailure("undecodable_video", ""))
    results = TagResults([good, bad])
    assert len(results) == 2 and results[0] is good and list(results) == [good, bad]
    assert isinstance(results[:1], TagResults) and list(results[:1]) == [good]
    assert list(results.failed) == [bad]
    assert repr(results) == "TagResults(2 videos, 1 failed)"
    assert "0 videos" in TagResults([])._repr_html_()


def test_pictures_of_what_is_gone_or_broken_are_missing(folder: Path) -> None:
    made = thumbnails([folder / "text.mp4", folder / "gone.mp4", folder, folder / "red.mp4"])
    assert made[:3] == [None] * 3
    assert made[3] is not None and made[3].startswith(b"\xff\xd8")
