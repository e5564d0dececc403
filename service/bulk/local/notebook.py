"""A list of results that a notebook shows as a table with a picture of each video."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import overload

from vidlex.service.bulk.results import TaggedLabel, TagResult
from vidlex.service.bulk.sources import local_path

MAX_ROWS = 50  # shown; with a picture each, about 5 KB
_MAX_LABELS = 5
_STYLE = (
    "<style scoped>.vidlex td{text-align:left;vertical-align:top}.vidlex img{max-width:160px;max-height:120px}"
    ".vidlex .bar{display:inline-block;height:.7em;background:#9db8d9}.vidlex .matched{background:#2f6fb5}"
    ".vidlex .score{display:inline-block;width:104px}.vidlex .error{color:#b00020}</style>"
)


class TagResults(Sequence[TagResult]):
    """In a notebook it shows a picture of each of the first videos, if they are files of this machine, and their best
    labels. The pictures are made when it is first shown, by separate processes.
    """

    def __init__(self, results: Iterable[TagResult]) -> None:
        self._results = list(results)
        self._pictures: list[bytes | None] | None = None

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> TagResult: ...

    @overload
    def __getitem__(self, index: slice) -> TagResults: ...

    def __getitem__(self, index: int | slice) -> TagResult | TagResults:
        return TagResults(self._results[index]) if isinstance(index, slice) else self._results[index]

    @property
    def failed(self) -> TagResults:
        return TagResults(result for result in self._results if result.failure is not None)

    def __repr__(self) -> str:
        return f"TagResults({len(self)} videos, {len(self.failed)} failed)"

    def _repr_html_(self) -> str:
        shown = self._results[:MAX_ROWS]
        if self._pictures is None:
            self._pictures = _pictures(shown)
        rows = "".join(_row(result, picture) for result, picture in zip(shown, self._pictures, strict=True))
        more = f"<p>{len(self) - len(shown)} more</p>" if len(self) > len(shown) else ""
        summary = f"<p>{len(self)} videos, {len(self.failed)} failed</p>"
        head = "<thead><tr><th></th><th>video</th><th>labels</th></tr></thead>"
        return f'<div class="vidlex">{_STYLE}{summary}<table>{head}<tbody>{rows}</tbody></table>{more}</div>'


def _pictures(results: Sequence[TagResult]) -> list[bytes | None]:
    from vidlex.service.bulk.local.thumbnails import thumbnails

    paths = [None if result.failure is not None else local_path(result.uri) for result in results]
    made = iter(thumbnails([path for path in paths if path is not None]))
    return [None if path is None else next(made) for path in paths]


def _row(result: TagResult, picture: bytes | None) -> str:
    image = ""
    if picture is not None:
        image = f'<img src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
    name = escape(result.uri.rstrip("/").rpartition("/")[2] or result.uri)
    facts = ""
    if result.video is not None:
        video = result.video
        facts = f"<br>{video.duration_ms / 1000:.1f} s, {video.width} × {video.height}"
    return f'<tr><td>{image}</td><td title="{escape(result.uri)}">{name}{facts}</td><td>{_cell(result)}</td></tr>'


def _cell(result: TagResult) -> str:
    if result.failure is not None:
        return f'<span class="error">{escape(result.failure.code)}: {escape(result.failure.detail)}</span>'
    return "<br>".join(map(_bar, result.labels[:_MAX_LABELS])) or "no labels"


def _bar(label: TaggedLabel) -> str:
    width = round(100 * min(1.0, max(0.0, label.score)))
    kind = "bar matched" if label.matched else "bar"
    name = f"<b>{escape(label.name)}</b>" if label.matched else escape(label.name)
    return f'<span class="score"><span class="{kind}" style="width:{width}px"></span></span>{label.score:.2f} {name}'
