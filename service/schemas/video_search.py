from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vidlex.service.bounds import MAX_CLIENT_ID_CHARS, MAX_METADATA_KEYS, MAX_NAME_CHARS, MAX_URL_CHARS
from vidlex.service.schemas.base import WHOLE, Int64, Milliseconds, Probability, Revision, Strict, Texts, View
from vidlex.service.schemas.classify import ModelView
from vidlex.service.schemas.jobs import JobWebhookBody

MAX_HITS = 100
MAX_BACKFILL_LABELS = 10_000
MAX_REENCODED_IDS = 1000
MAX_VECTOR = 16_384

BackfillEventName = Literal["video.labels_changed", "job.succeeded", "job.failed", "job.cancelled", "job.expired"]
_LABEL_ID = "lbl_000000020000wn88xex5bvdb"  # examples
_VIDEO_ID = "vid_01jq5xk9y2abcdefghjkmnpq"
_JOB_ID = "job_01jq5xk9y2abcdefghjkmnpq"
_TIME_MS = 1796057582384


class VideoSearchFilterBody(Strict):
    """All that are given must hold."""

    client_id: str | None = Field(
        None, max_length=MAX_CLIENT_ID_CHARS, description="The client's own id of the video.", examples=["clip-17"]
    )
    metadata: dict[str, Any] = Field(
        default={},
        max_length=MAX_METADATA_KEYS,
        description="Members that the video's metadata must have, with equal values.",
        examples=[{"team": "pets"}],
    )
    created_from_ms: Milliseconds | None = Field(None, description="Kept at this Unix time or later, in milliseconds.")
    created_to_ms: Milliseconds | None = Field(None, description="Kept at this Unix time or earlier, in milliseconds.")


class VideoSearchBody(Strict):
    """What to look for: exactly one of `text`, `label_id`, `video_id` and `vector`."""

    text: str | None = Field(
        None,
        max_length=MAX_NAME_CHARS,
        description="Any words; they are encoded as the name of a label.",
        examples=["a dog that jumps"],
    )
    label_id: str | None = Field(None, max_length=100, description="A stored label.", examples=[_LABEL_ID])
    video_id: str | None = Field(
        None, max_length=100, description="A kept video: others like it are found.", examples=[_VIDEO_ID]
    )
    vector: Annotated[list[float], Field(max_length=MAX_VECTOR, fail_fast=True)] | None = Field(
        None, description="A direction in the space of the served model."
    )
    start_ms: Milliseconds | None = Field(
        None, description="With `video_id`: only segments that end at this time or later count, in milliseconds."
    )
    end_ms: Milliseconds | None = Field(
        None, description="With `video_id`: only segments that begin at this time or earlier count, in milliseconds."
    )
    limit: Annotated[int, Field(ge=1, le=MAX_HITS), WHOLE] = Field(10, description="Videos to return.")
    min_score: Probability = Field(0.0, description="Lowest score of a hit.")
    segments: bool = Field(False, description="Whether to return the best segments of each video.")
    filters: VideoSearchFilterBody = Field(
        default_factory=lambda: VideoSearchFilterBody.model_validate({}), description="Which videos are searched."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> VideoSearchBody:
        given = [name for name in ("text", "label_id", "video_id", "vector") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("exactly one of text, label_id, video_id and vector is required")
        if self.video_id is None and (self.start_ms is not None or self.end_ms is not None):
            raise ValueError("start_ms and end_ms require video_id")
        return self


class SearchedSegmentView(View):
    """A segment of a hit."""

    start_ms: Int64 = Field(description="Start of the segment in milliseconds.", examples=[4000])
    end_ms: Int64 = Field(description="End of the segment in milliseconds.", examples=[8000])
    score: float = Field(description="As the video's.", examples=[0.93])


class VideoHitView(View):
    """A kept video that was found."""

    video_id: str = Field(description="Id of the video.", examples=[_VIDEO_ID])
    client_id: str | None = Field(description="The client's own id.", examples=["clip-17"])
    uri: str | None = Field(
        description="Where the video can be read again; null: unknown.",
        examples=["s3://team-videos/17.mp4"],
    )
    metadata: dict[str, Any] = Field(description="Of the client.", examples=[{"team": "pets"}])
    duration_ms: Int64 | None = Field(description="Length of the video in milliseconds.", examples=[12_000])
    created_at_ms: Int64 = Field(description="When it was kept, as Unix time in milliseconds.", examples=[_TIME_MS])
    score: float = Field(
        description="That of the best segment: the probability of the text or label, or the cosine with the example.",
        examples=[0.93],
    )
    similarity: float = Field(description="Cosine of the best segment with what was asked for.", examples=[0.31])
    num_segments: int = Field(description="Segments of the video.", examples=[3])
    segments: list[SearchedSegmentView] = Field(
        description="At most 20 with the highest scores, in order of time; empty unless asked for."
    )


class VideoSearchView(View):
    """The kept videos that were found, best first."""

    object: Literal["videos.search"] = Field(default="videos.search", description="Type of this object.")
    data: list[VideoHitView] = Field(description="The videos, highest score first.")
    scores: Literal["probability", "similarity"] = Field(description="What the scores are.")
    model: ModelView = Field(description="The model whose features were searched.")
    calibration: str | None = Field(description="Fingerprint of the calibration of the probabilities; null: none.")
    vocabulary_revision: Int64 = Field(description="Revision of the vocabulary.", examples=[2])
    num_videos: Int64 = Field(description="Videos that were searched.", examples=[1200])
    num_segments: Int64 = Field(description="Their segments.", examples=[9600])
    num_missing: Int64 = Field(
        description="Kept videos without features of the model, which cannot be found; re-encode them.", examples=[0]
    )
    approximate: bool = Field(description="Short codes chose the candidates: about one in a hundred may be missing.")
    complete: bool = Field(
        description="False: after 20,000 videos that the filters do not accept, the search ended before `limit`."
    )


class BackfillWebhookBody(Strict):
    """Where changes of labels and the end of the job are reported, signed as Standard Webhooks."""

    url: str = Field(
        min_length=1,
        max_length=MAX_URL_CHARS,
        description="An https:// URL of a host that the service is configured for.",
        examples=["https://hooks.example/vidlex"],
    )
    events: list[BackfillEventName] = Field(
        default=[],
        max_length=5,
        description="Types of events to report; empty: all.",
        examples=[["video.labels_changed"]],
    )
    cloud_events: bool = Field(False, description="Whether the body is an envelope of CloudEvents 1.0.")


class BackfillBody(Strict):
    """Which labels to apply to the kept videos: `label_ids` or `since_revision`."""

    label_ids: Texts | None = Field(
        None, min_length=1, max_length=MAX_BACKFILL_LABELS, description="These labels.", examples=[[_LABEL_ID]]
    )
    since_revision: Revision | None = Field(
        None, description="All labels that were created or changed after this revision of the vocabulary; 0: all."
    )
    min_score: Probability | None = Field(None, description="Takes the place of the labels' thresholds.")
    webhook: BackfillWebhookBody | None = Field(None, description="Null: none.")
    metadata: dict[str, Any] = Field(default={}, description="Of the job, returned as it is.", examples=[{"run": 3}])

    @model_validator(mode="after")
    def _exactly_one(self) -> BackfillBody:
        if (self.label_ids is None) == (self.since_revision is None):
            raise ValueError("exactly one of label_ids and since_revision is required")
        return self


class ReencodeBody(Strict):
    """Which kept videos get features of the served model."""

    video_ids: Texts | None = Field(
        None,
        min_length=1,
        max_length=MAX_REENCODED_IDS,
        description="These videos; default: all that have none.",
        examples=[[_VIDEO_ID]],
    )
    webhook: JobWebhookBody | None = Field(None, description="Null: none.")
    metadata: dict[str, Any] = Field(default={}, description="Of the job, returned as it is.", examples=[{"run": 3}])


class MatchedVideoView(View):
    """A kept video that a label matches, or matched."""

    video_id: str = Field(description="Id of the video.", examples=[_VIDEO_ID])
    score: float | None = Field(description="Of its best segment; null for a lost one.", examples=[0.93])
    start_ms: Int64 | None = Field(description="Start of the stretch with that score, in milliseconds.")
    end_ms: Int64 | None = Field(description="End of that stretch, in milliseconds.")
    change: Literal["gained", "lost"] | None = Field(
        description="Since the backfill before the last one; null: it matched then too."
    )


class LabelVideosView(View):
    """A page of the kept videos that a label matches, as of its last backfill, in order of their ids."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[MatchedVideoView] = Field(description="The videos. Removed ones are left out.")
    has_more: bool = Field(description="Whether another page follows; request it with `after` = `last_id`.")
    first_id: str | None = Field(description="Id of the page's first video; null if the page is empty.")
    last_id: str | None = Field(description="Id with which the next page begins after; null if the page is empty.")
    job_id: str = Field(description="The job that did the backfill.", examples=[_JOB_ID])
    model: str = Field(description="Fingerprint of the model that scored the videos.", examples=["photo-small-4f6c1a"])
    calibration: str | None = Field(description="Fingerprint of the calibration; null: none.")
    vocabulary_revision: Int64 = Field(description="Revision of the vocabulary.", examples=[2])
    threshold: float = Field(description="Score from which a video matches.", examples=[0.5])
    num_videos: Int64 = Field(description="Videos that were scored.", examples=[1200])
    num_matched: Int64 = Field(description="That match.", examples=[31])
    num_gained: Int64 = Field(description="That did not match before.", examples=[2])
    num_lost: Int64 = Field(description="That matched before.", examples=[1])
    created_at_ms: Int64 = Field(description="When, as Unix time in milliseconds.", examples=[_TIME_MS])


class GenerationOfVideosView(View):
    """Kept videos that have features of a model."""

    model: str = Field(description="Fingerprint of the model.", examples=["photo-small-4f6c1a"])
    num_videos: Int64 = Field(description="Videos.", examples=[1200])
    served: bool = Field(description="Whether it is the served model.")


class VideoGenerationsView(View):
    """Which models the kept videos have features of."""

    object: Literal["videos.generations"] = Field(default="videos.generations", description="Type of this object.")
    data: list[GenerationOfVideosView] = Field(description="The served model first.")
    num_videos: Int64 = Field(description="Kept videos.", examples=[1200])
    num_missing: Int64 = Field(
        description="Without features of the served model: `POST /videos:reencode` reads them again.", examples=[0]
    )
    sample_missing_ids: list[str] = Field(
        description="At most 20 of these, newest first; none that follow 100,000 videos which have the features.",
        examples=[[_VIDEO_ID]],
    )


class BackfilledLabelView(View):
    """What a backfill changed of one label."""

    label_id: str = Field(description="Id of the label.", examples=[_LABEL_ID])
    name: str = Field(description="Name of the label.", examples=["golden retriever"])
    threshold: float = Field(description="Score from which a video matches.", examples=[0.5])
    num_videos: Int64 = Field(description="Videos that were scored.", examples=[1200])
    num_matched: Int64 = Field(description="That match.", examples=[31])
    num_gained: Int64 = Field(description="That did not match at the label's backfill before.", examples=[2])
    num_lost: Int64 = Field(description="That matched at the label's backfill before.", examples=[1])
    gained_ids: list[str] = Field(description="The first of these videos, at most 100.", examples=[[_VIDEO_ID]])
    lost_ids: list[str] = Field(description="The first of these videos, at most 100.", examples=[[]])


class BackfillResultView(View):
    """The result of a job of the kind `backfill`."""

    object: Literal["videos.backfill"] = Field(default="videos.backfill", description="Type of this object.")
    model: str = Field(description="Fingerprint of the model.", examples=["photo-small-4f6c1a"])
    calibration: str | None = Field(description="Fingerprint of the calibration; null: none.")
    vocabulary_revision: Int64 = Field(description="Revision of the vocabulary.", examples=[2])
    num_videos: Int64 = Field(description="Videos that were scored.", examples=[1200])
    num_segments: Int64 = Field(description="Their segments.", examples=[9600])
    num_missing: Int64 = Field(description="Kept videos without features of the model.", examples=[0])
    num_labels: int = Field(description="Labels that were applied.", examples=[1])
    num_gained: Int64 = Field(description="Of all labels.", examples=[2])
    num_lost: Int64 = Field(description="Of all labels.", examples=[1])
    labels: list[BackfilledLabelView] = Field(description="In the order of the request.")
    unknown_label_ids: list[str] = Field(description="Labels that were removed meanwhile, or cannot be encoded.")
    seconds: float = Field(description="That the last attempt took.", examples=[0.4])


class ReencodeFailureView(View):
    """A video that could not be read again."""

    video_id: str = Field(description="Id of the video.", examples=[_VIDEO_ID])
    code: str = Field(description="Stable identifier, as of an error.", examples=["fetch_failed"])
    detail: str = Field(description="What went wrong, for people.", examples=["The URL could not be read"])


class ReencodeResultView(View):
    """The result of a job of the kind `reencode`: of its last attempt, if it had several."""

    object: Literal["videos.reencode"] = Field(default="videos.reencode", description="Type of this object.")
    model: str = Field(description="Fingerprint of the model.", examples=["photo-small-4f6c1a"])
    num_reencoded: Int64 = Field(description="Videos that have features of the model now.", examples=[180])
    num_failed: Int64 = Field(description="Videos that could not be read or encoded.", examples=[1])
    num_without_uri: Int64 = Field(description="Videos whose URI is not known.", examples=[19])
    num_removed: Int64 = Field(description="Videos that were removed meanwhile.", examples=[0])
    failures: list[ReencodeFailureView] = Field(description="The first 100.")
    ids_without_uri: list[str] = Field(description="The first 100.", examples=[[_VIDEO_ID]])
