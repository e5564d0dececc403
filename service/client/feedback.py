"""Judgements of labels, and thresholds that are fitted to them: `Client.feedback` and `AsyncClient.feedback`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypedDict, TypeVar, Unpack
from urllib.parse import quote

from vidlex.service.bounds import MAX_PAGE_SIZE
from vidlex.service.client.calls import view_of
from vidlex.service.client.exchange import Call
from vidlex.service.schemas.feedback import (
    FeedbackView,
    FitView,
    JudgedLabelListView,
    JudgedLabelView,
    JudgementBody,
    JudgementListView,
    JudgementView,
    ThresholdVersionListView,
    ThresholdVersionView,
)

T = TypeVar("T")

Versions = list[ThresholdVersionView]  # because ``list`` is a method inside the classes
NewJudgement = Mapping[str, Any] | JudgementBody
"""The members of a judgement of the body of ``POST /feedback``."""


class JudgementFields(TypedDict, total=False):
    """One of ``video_id`` and ``sha256``, one of ``label_id`` and ``label``."""

    video_id: str
    sha256: str
    label_id: str
    label: str
    start_ms: int | None
    end_ms: int | None
    score: float | None
    fingerprint: str | None
    calibration: str | None
    note: str
    source: str


class RunsCalls(Protocol):
    """A `Client`."""

    def run(self, call: Call[T]) -> T: ...


class RunsCallsInALoop(Protocol):
    """An `AsyncClient`."""

    async def run(self, call: Call[T]) -> T: ...


class Feedback:
    """Thread-safe, as its client."""

    def __init__(self, client: RunsCalls) -> None:
        self._client = client

    def judge(self, *, right: bool, **fields: Unpack[JudgementFields]) -> FeedbackView:
        """Whether a label applies to a video or a segment of it."""
        return self.add([{**fields, "right": right}])

    def add(self, judgements: Iterable[NewJudgement]) -> FeedbackView:
        """Up to 1,000, stored all or none."""
        return self._client.run(_add(judgements))

    def list(self, label_id: str, *, page_size: int = MAX_PAGE_SIZE) -> Iterator[JudgementView]:
        """Newest first, read page by page."""
        page = self._client.run(_list(label_id, None, page_size))
        yield from page.data
        while page.has_more:
            page = self._client.run(_list(label_id, page.last_id, page_size))
            yield from page.data

    def remove(self, judgement_id: str) -> None:
        """Raises NotFound."""
        self._client.run(_remove(judgement_id))

    def labels(self, *, page_size: int = MAX_PAGE_SIZE) -> Iterator[JudgedLabelView]:
        """Those with judgements."""
        page = self._client.run(_labels(None, page_size))
        yield from page.data
        while page.has_more:
            page = self._client.run(_labels(page.last_id, page_size))
            yield from page.data

    def fit(self, label_id: str, *, target_precision: float | None = None) -> FitView:
        """Stores nothing."""
        return self._client.run(_fit(label_id, target_precision))

    def apply(
        self,
        label_id: str,
        *,
        proposal: str | None = None,
        target_precision: float | None = None,
        if_match: str | None = None,
    ) -> ThresholdVersionView:
        """``proposal``: of the fit that is confirmed; raises PreconditionFailed if it has changed. Raises Conflict if
        there is no threshold, or the label has it."""
        return self._client.run(_apply(label_id, proposal, target_precision, if_match))

    def revert(self, label_id: str, *, if_match: str | None = None) -> ThresholdVersionView:
        """Raises Conflict if no fitted threshold is left, or it was changed since."""
        return self._client.run(_revert(label_id, if_match))

    def versions(self, label_id: str) -> Versions:
        """Newest first."""
        return self._client.run(_versions(label_id))


class AsyncFeedback:
    """As `Feedback`, for asyncio."""

    def __init__(self, client: RunsCallsInALoop) -> None:
        self._client = client

    async def judge(self, *, right: bool, **fields: Unpack[JudgementFields]) -> FeedbackView:
        return await self.add([{**fields, "right": right}])

    async def add(self, judgements: Iterable[NewJudgement]) -> FeedbackView:
        return await self._client.run(_add(judgements))

    async def list(self, label_id: str, *, page_size: int = MAX_PAGE_SIZE) -> AsyncIterator[JudgementView]:
        page = await self._client.run(_list(label_id, None, page_size))
        while True:
            for judgement in page.data:
                yield judgement
            if not page.has_more:
                return
            page = await self._client.run(_list(label_id, page.last_id, page_size))

    async def remove(self, judgement_id: str) -> None:
        await self._client.run(_remove(judgement_id))

    async def labels(self, *, page_size: int = MAX_PAGE_SIZE) -> AsyncIterator[JudgedLabelView]:
        page = await self._client.run(_labels(None, page_size))
        while True:
            for label in page.data:
                yield label
            if not page.has_more:
                return
            page = await self._client.run(_labels(page.last_id, page_size))

    async def fit(self, label_id: str, *, target_precision: float | None = None) -> FitView:
        return await self._client.run(_fit(label_id, target_precision))

    async def apply(
        self,
        label_id: str,
        *,
        proposal: str | None = None,
        target_precision: float | None = None,
        if_match: str | None = None,
    ) -> ThresholdVersionView:
        return await self._client.run(_apply(label_id, proposal, target_precision, if_match))

    async def revert(self, label_id: str, *, if_match: str | None = None) -> ThresholdVersionView:
        return await self._client.run(_revert(label_id, if_match))

    async def versions(self, label_id: str) -> Versions:
        return await self._client.run(_versions(label_id))


def _add(judgements: Iterable[NewJudgement]) -> Call[FeedbackView]:
    items = [
        item.model_dump(mode="json", exclude_unset=True) if isinstance(item, JudgementBody) else dict(item)
        for item in judgements
    ]
    # A repetition replaces the judgements by themselves.
    return Call("POST", "/feedback", view_of(FeedbackView), body={"judgements": items}, is_repeatable=True)


def _list(label_id: str, after: str | None, page_size: int) -> Call[JudgementListView]:
    params = _given(label_id=label_id, limit=min(page_size, MAX_PAGE_SIZE), after=after)
    return Call("GET", "/feedback", view_of(JudgementListView), params=params, is_repeatable=True)


def _remove(judgement_id: str) -> Call[None]:
    return Call("DELETE", f"/feedback/{quote(judgement_id, safe='')}", lambda _: None)


def _labels(after: str | None, page_size: int) -> Call[JudgedLabelListView]:
    params = _given(limit=min(page_size, MAX_PAGE_SIZE), after=after)
    return Call("GET", "/feedback:labels", view_of(JudgedLabelListView), params=params, is_repeatable=True)


def _fit(label_id: str, target_precision: float | None) -> Call[FitView]:
    params = _given(target_precision=target_precision)
    return Call("GET", _path(label_id), view_of(FitView), params=params, is_repeatable=True)


def _apply(
    label_id: str, proposal: str | None, target_precision: float | None, if_match: str | None
) -> Call[ThresholdVersionView]:
    params = _given(proposal=proposal, target_precision=target_precision)
    return _changed(f"{_path(label_id)}:apply", params, if_match)


def _revert(label_id: str, if_match: str | None) -> Call[ThresholdVersionView]:
    return _changed(f"{_path(label_id)}:revert", {}, if_match)


def _changed(path: str, params: Mapping[str, str | int], if_match: str | None) -> Call[ThresholdVersionView]:
    tag = None if if_match is None else if_match if if_match == "*" or if_match.startswith('"') else f'"{if_match}"'
    headers = {} if tag is None else {"If-Match": tag}
    return Call("POST", path, view_of(ThresholdVersionView), params=params, headers=headers)


def _versions(label_id: str) -> Call[list[ThresholdVersionView]]:
    read: Callable[[Any], ThresholdVersionListView] = view_of(ThresholdVersionListView)
    return Call("GET", f"{_path(label_id)}/versions", lambda reply: read(reply).data, is_repeatable=True)


def _path(label_id: str) -> str:
    return f"/feedback/fits/{quote(label_id, safe='')}"


def _given(**params: str | float | None) -> dict[str, str | int]:
    return {name: str(value) for name, value in params.items() if value is not None}
