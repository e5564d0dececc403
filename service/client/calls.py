"""The requests of the HTTP interface, one function each: what is sent, and what the answer is read as."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import ValidationError

from vidlex.service.bounds import MAX_PAGE_SIZE
from vidlex.service.client.errors import NotFound, UnexpectedAnswer
from vidlex.service.client.exchange import Call, Reply
from vidlex.service.client.uploads import OnProgress, Upload, VideoInput
from vidlex.service.labels.store.names import fold
from vidlex.service.schemas.base import View
from vidlex.service.schemas.calibration import CalibrationBody, CalibrationView
from vidlex.service.schemas.cards import CardBatchView, CardFailureView, CardResultView, CardView
from vidlex.service.schemas.classify import AggregateByName, ClassificationView, FramePolicyName
from vidlex.service.schemas.health import ReadyView
from vidlex.service.schemas.keys import ApiKeyListView, ApiKeyView, NewApiKeyView
from vidlex.service.schemas.labels import (
    LabelBatchView,
    LabelFailureView,
    LabelListView,
    LabelResultView,
    LabelView,
    NewLabelBody,
)
from vidlex.service.schemas.models import ModelDiffView, ModelsView

T = TypeVar("T")
ViewT = TypeVar("ViewT", bound=View)

NewLabel = str | Mapping[str, Any] | NewLabelBody
"""A name, or the members of the body of ``POST /labels``."""
IfExists = Literal["error", "return"]


class LabelFields(TypedDict, total=False):
    aliases: Sequence[str]
    categories: Sequence[str]
    parents: Sequence[str]  # ids, names or aliases
    threshold: float | None  # None: the model's default
    metadata: Mapping[str, Any]


class LabelChanges(LabelFields, total=False):
    name: str


class LabelFilters(TypedDict, total=False):
    category: str | None
    parent: str | None  # id, name or alias
    prefix: str | None
    q: str | None  # a part of the name or of an alias
    min_revision: int | None


class ClassifyOptions(TypedDict, total=False):
    """Those of the body's `params`; None: the service's default."""

    label_ids: Sequence[str] | None
    candidate_labels: Sequence[str] | None
    include_categories: Sequence[str] | None
    exclude_categories: Sequence[str] | None
    min_score: float
    top_k: int  # 0: all
    num_frames: int | None
    frame_policy: FramePolicyName | None
    aggregate_by: AggregateByName
    segment_ms: int | None
    start_ms: int | None
    end_ms: int | None
    deadline_ms: int | None
    min_revision: int | None
    keep: bool
    keep_seconds: float | None
    client_id: str | None
    uri: str | None
    thumbnails: bool


class KeepingOptions(ClassifyOptions, total=False):
    metadata: Mapping[str, Any] | None  # of the kept video; a job has its own


class KeyOptions(TypedDict, total=False):
    name: str
    namespace: str  # `*`: any
    expires_in_seconds: int | None
    requests_per_second: float | None
    burst: int | None
    max_labels: int | None


def create_label(
    name: str, fields: LabelFields, *, if_exists: IfExists, idempotency_key: str | None
) -> Call[LabelView]:
    return _post_labels({"name": name, **fields}, view_of(LabelView), if_exists, idempotency_key)


def create_labels(
    labels: Iterable[NewLabel], *, if_exists: IfExists, idempotency_key: str | None
) -> Call[list[LabelResultView | LabelFailureView]]:
    read = view_of(LabelBatchView)
    body = {"labels": [_new_label(label) for label in labels]}
    return _post_labels(body, lambda reply: read(reply).data, if_exists, idempotency_key)


def _post_labels(body: Any, parse: Callable[[Reply], T], if_exists: IfExists, idempotency_key: str | None) -> Call[T]:
    if idempotency_key is None and if_exists == "error":
        # With "return" a repetition finds the labels. The service keeps each key's answer for a day, up to a quota.
        idempotency_key = secrets.token_hex(16)
    return Call(
        "POST",
        "/labels",
        parse,
        params={"if_exists": if_exists},
        headers={} if idempotency_key is None else {"Idempotency-Key": idempotency_key},
        body=body,
        is_repeatable=True,
    )


def get_label(label_id: str) -> Call[LabelView]:
    return _get(f"/labels/{quote(label_id, safe='')}", LabelView)


def find_label(reference: str) -> Call[LabelView]:
    """By its id, name or alias; case is ignored."""
    if reference.startswith("lbl_"):
        return get_label(reference)
    wanted = fold(reference)
    if not wanted:
        raise NotFound("no label has an empty name", code="not_found")

    # A name sorts before all others with the same prefix, so the first result is an exact match or there is none.
    def first(reply: Reply) -> LabelView:
        for label in view_of(LabelListView)(reply).data:
            if wanted in map(fold, (label.name, *label.aliases)):
                return label
        raise NotFound(f"no label {reference!r}", code="not_found")

    return Call("GET", "/labels", first, params={"prefix": reference, "limit": 1}, is_repeatable=True)


def list_labels(filters: LabelFilters, *, after: str | None, page_size: int) -> Call[LabelListView]:
    params: dict[str, str | int] = {"limit": min(page_size, MAX_PAGE_SIZE)}
    params |= {key: value for key, value in filters.items() if value is not None}  # type: ignore[misc]
    if after is not None:
        params["after"] = after
    return _get("/labels", LabelListView, params)


def label_pages(
    run: Callable[[Call[LabelListView]], LabelListView],
    filters: LabelFilters,
    *,
    after: str | None = None,
    page_size: int = MAX_PAGE_SIZE,
) -> Iterator[LabelListView]:
    while True:
        page = run(list_labels(filters, after=after, page_size=page_size))
        yield page
        if not page.has_more or page.last_id is None:
            return
        after = page.last_id


def update_label(label_id: str, changes: LabelChanges, *, if_match: str | None) -> Call[LabelView]:
    path = f"/labels/{quote(label_id, safe='')}"
    return Call("PATCH", path, view_of(LabelView), headers=_if_match(if_match), body=changes)


def delete_label(label_id: str, *, if_match: str | None) -> Call[int]:
    return Call("DELETE", f"/labels/{quote(label_id, safe='')}", _revision, headers=_if_match(if_match))


def label_card(label_id: str) -> Call[CardView]:
    return _get(f"/labels/{quote(label_id, safe='')}/card", CardView)


def preview_label(label: NewLabel) -> Call[CardView]:
    return Call("POST", "/labels:preview", view_of(CardView), body=_new_label(label), is_repeatable=True)


def preview_labels(labels: Iterable[NewLabel]) -> Call[list[CardResultView | CardFailureView]]:
    read = view_of(CardBatchView)
    body = {"labels": [_new_label(label) for label in labels]}
    return Call("POST", "/labels:preview", lambda reply: read(reply).data, body=body, is_repeatable=True)


def classify(video: VideoInput, options: KeepingOptions, *, on_progress: OnProgress | None) -> Call[ClassificationView]:
    params = {key: value for key, value in options.items() if value is not None}
    deadline = options.get("deadline_ms")
    return Call(
        "POST",
        "/classify",
        view_of(ClassificationView),
        headers={} if deadline is None else {"X-Vidlex-Deadline-Ms": str(deadline)},  # read before the upload
        upload=Upload(video, params, on_progress),
        is_repeatable=True,
    )


def models() -> Call[ModelsView]:
    return _get("/models", ModelsView)


def prepare_model(model: str) -> Call[ModelsView]:
    return Call("POST", "/models:prepare", view_of(ModelsView), body={"model": model}, is_repeatable=True)


def activate_model() -> Call[ModelsView]:
    return Call("POST", "/models:activate", view_of(ModelsView))


def rollback_model() -> Call[ModelsView]:
    return Call("POST", "/models:rollback", view_of(ModelsView))


def drop_model(fingerprint: str) -> Call[ModelsView]:
    return Call("POST", "/models:drop", view_of(ModelsView), body={"fingerprint": fingerprint})


def diff_models(limit: int) -> Call[ModelDiffView]:
    return _get("/models:diff", ModelDiffView, {"limit": limit})


def create_key(scope: str, options: KeyOptions) -> Call[NewApiKeyView]:
    body = {"scope": scope, **{key: value for key, value in options.items() if value is not None}}
    return Call("POST", "/keys", view_of(NewApiKeyView), body=body)


def list_keys() -> Call[list[ApiKeyView]]:
    read = view_of(ApiKeyListView)
    return Call("GET", "/keys", lambda reply: read(reply).data, is_repeatable=True)


def revoke_key(key_id: str) -> Call[None]:
    return Call("DELETE", f"/keys/{quote(key_id, safe='')}", _nothing)


def calibration(limit: int) -> Call[CalibrationView]:
    return _get("/calibration", CalibrationView, {"limit": limit})


def calibrate(body: CalibrationBody | Mapping[str, Any], limit: int) -> Call[CalibrationView]:
    sent = body.model_dump(mode="json") if isinstance(body, CalibrationBody) else dict(body)
    params: dict[str, str | int] = {"limit": limit}
    return Call("PUT", "/calibration", view_of(CalibrationView), params=params, body=sent, is_repeatable=True)


def delete_calibration() -> Call[int]:
    return Call("DELETE", "/calibration", _revision, is_repeatable=True)


def live() -> Call[None]:
    return Call("GET", "/livez", _nothing, is_repeatable=True)


def ready() -> Call[ReadyView]:
    """A service that is not ready answers too."""
    return Call("GET", "/readyz", view_of(ReadyView), answers=frozenset({503}), is_repeatable=True)


def metrics() -> Call[str]:
    return Call("GET", "/metrics", lambda reply: reply.body.decode("utf-8", "replace"), is_repeatable=True)


def _get(path: str, view: type[ViewT], params: Mapping[str, str | int] | None = None) -> Call[ViewT]:
    return Call("GET", path, view_of(view), params=params or {}, is_repeatable=True)


def _if_match(etag: str | None) -> dict[str, str]:
    if etag is None:
        return {}
    return {"If-Match": etag if etag == "*" or etag.startswith('"') else f'"{etag}"'}


def _new_label(label: NewLabel) -> Any:
    if isinstance(label, NewLabelBody):
        return label.model_dump(mode="json", exclude_unset=True)
    return {"name": label} if isinstance(label, str) else dict(label)


def view_of(view: type[ViewT]) -> Callable[[Reply], ViewT]:
    """Members that the view does not have are left out: those of a newer service."""

    def read(reply: Reply) -> ViewT:
        try:
            return view.model_validate_json(reply.body)
        except ValidationError as error:
            where = "/".join(map(str, error.errors(include_input=False, include_url=False)[0]["loc"])) or "the body"
            detail = f"the answer is no {view.__name__} that this client knows ({where})"
            raise UnexpectedAnswer(detail, status=reply.status) from None

    return read


def _nothing(_: Reply) -> None:
    return None


def _revision(reply: Reply) -> int:
    text = reply.headers.get("x-vidlex-revision", "")
    if not text.isdecimal():
        raise UnexpectedAnswer("the answer names no revision", status=reply.status)
    return int(text)
