from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vidlex.service.bounds import FINGERPRINT_PATTERN
from vidlex.service.schemas.base import Int64, Milliseconds, Name, Probability, Strict, View, WarningView
from vidlex.service.schemas.classify import ModelView

MAX_JUDGEMENTS = 1000
MAX_NOTE_CHARS = 1000
MAX_SOURCE_CHARS = 100

_LABEL_ID = "lbl_000000020000wn88xex5bvdb"
_VIDEO_ID = "vid_01jd0q7w4k8t3x5m2n9p6r1c"
_JUDGEMENT_ID = "jdg_01jd0q7w4k8t3x5m2n9p6r1c"
_VERSION_ID = "fit_01jd0q7w4k8t3x5m2n9p6r1c"
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_TIME_MS = 1796057582384
_Fingerprint = Annotated[str, Field(pattern=f"^{FINGERPRINT_PATTERN}$")]


class JudgementBody(Strict):
    """Whether a label applies to a video, or to a segment of it."""

    right: bool = Field(description="True: the label applies. False: it does not.")
    video_id: str | None = Field(
        None, max_length=64, description="Id of a kept video; its score is computed from its features.",
        examples=[_VIDEO_ID],
    )  # fmt: skip
    sha256: str | None = Field(
        None, pattern="^[0-9a-fA-F]{64}$", description="Digest of the video, in place of `video_id`.",
        examples=[_SHA256],
    )  # fmt: skip
    label_id: str | None = Field(None, max_length=64, description="Id of the label.", examples=[_LABEL_ID])
    label: Name | None = Field(None, description="Name or alias of the label, in place of `label_id`.")
    start_ms: Milliseconds | None = Field(None, description="Start of the judged segment; null: the whole video.")
    end_ms: Milliseconds | None = Field(None, description="Its end; with `start_ms`.")
    score: Probability | None = Field(
        None, description="The score that was judged, for a video that is not kept.", examples=[0.71]
    )
    fingerprint: _Fingerprint | None = Field(
        None, description="Of the model that gave the score; required with it.", examples=["photo-small-4f6c1a"]
    )
    calibration: _Fingerprint | None = Field(
        None, description="`calibration` of the answer that the score is from; null: the model's own scores."
    )
    note: str = Field(default="", max_length=MAX_NOTE_CHARS, description="A remark for people.")
    source: str = Field(
        default="", max_length=MAX_SOURCE_CHARS, description="Where it comes from.", examples=["label-studio"]
    )

    @model_validator(mode="after")
    def _consistent(self) -> JudgementBody:
        if (self.video_id is None) == (self.sha256 is None):
            raise ValueError("exactly one of video_id and sha256 is required")
        if (self.label_id is None) == (self.label is None):
            raise ValueError("exactly one of label_id and label is required")
        if (self.start_ms is None) != (self.end_ms is None):
            raise ValueError("start_ms and end_ms are given together")
        if self.start_ms is not None and self.end_ms is not None and self.end_ms < self.start_ms:
            raise ValueError("end_ms is before start_ms")
        if (self.score is None) != (self.fingerprint is None):
            raise ValueError("score and fingerprint are given together")
        if self.calibration is not None and self.score is None:
            raise ValueError("calibration is that of a score")
        return self


class JudgementBatchBody(Strict):
    """Judgements to store, all or none."""

    judgements: list[JudgementBody] = Field(min_length=1, max_length=MAX_JUDGEMENTS, description="The judgements.")


class JudgementView(View):
    """The newest judgement of a video or segment and a label."""

    object: Literal["judgement"] = Field(default="judgement", description="Type of this object.")
    id: str = Field(description="Id of the judgement.", examples=[_JUDGEMENT_ID])
    label_id: str = Field(description="Id of the label.", examples=[_LABEL_ID])
    label: str = Field(description="Name of the label when it was judged.", examples=["golden retriever"])
    right: bool = Field(description="Whether the label applies.")
    sha256: str = Field(description="Digest of the video.", examples=[_SHA256])
    video_id: str | None = Field(description="Id of the kept video; null: judged by its digest.", examples=[_VIDEO_ID])
    start_ms: Int64 | None = Field(description="Start of the segment; null: the whole video.", examples=[4000])
    end_ms: Int64 | None = Field(description="Its end.", examples=[8000])
    score: float | None = Field(
        description="The score when it was judged; null: not known, so that it does not count.", examples=[0.71]
    )
    scored_by: Literal["service", "client"] | None = Field(
        description="`service`: computed from kept features. `client`: submitted. Null without a score."
    )
    fingerprint: str | None = Field(description="Model of the score.", examples=["photo-small-4f6c1a"])
    calibration: str | None = Field(description="Calibration of the score; null: the model's own scores.")
    note: str = Field(description="Remark of the client.")
    source: str = Field(description="Where it comes from.", examples=["label-studio"])
    created_at_ms: Int64 = Field(description="Unix time in milliseconds.", examples=[_TIME_MS])


class JudgementListView(View):
    """A page of judgements."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[JudgementView] = Field(description="The judgements, newest first.")
    has_more: bool = Field(description="Whether further pages exist.")
    first_id: str | None = Field(description="Id of the first judgement; null if the page is empty.")
    last_id: str | None = Field(description="Id of the last judgement: `after` of the next page.")


class JudgedLabelView(View):
    """A label with judgements."""

    object: Literal["judged_label"] = Field(default="judged_label", description="Type of this object.")
    label_id: str = Field(description="Id of the label.", examples=[_LABEL_ID])
    label: str = Field(description="Name of the label.", examples=["golden retriever"])
    num_judgements: Int64 = Field(description="Judgements that are kept of it.", examples=[31])
    min_judgements: Int64 = Field(description="Usable judgements from which a threshold is fitted.", examples=[30])


class JudgedLabelListView(View):
    """The labels with judgements."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[JudgedLabelView] = Field(description="The labels, in order of creation.")
    has_more: bool = Field(description="Whether further pages exist.")
    first_id: str | None = Field(description="Id of the first label; null if the page is empty.")
    last_id: str | None = Field(description="Id of the last label: `after` of the next page.")


class RateView(View):
    """A share of the judged videos, with its 95 % interval by Wilson, which counts videos."""

    value: float | None = Field(description="The share; null of nothing.", examples=[0.8])
    low: float = Field(description="Lower end of the interval.", examples=[0.55])
    high: float = Field(description="Upper end of the interval.", examples=[0.93])


class QualityView(View):
    """What a threshold does on the judged videos, which are no random sample of all videos."""

    threshold: float | None = Field(description="The threshold; null: each part has its own.", examples=[0.5])
    precision: RateView = Field(description="Share of right judgements among those with at least this score.")
    recall: RateView = Field(description="Share of judgements with at least this score among the right ones.")
    num_true_positive: Int64 = Field(description="Right ones with at least this score.", examples=[12])
    num_false_positive: Int64 = Field(description="Wrong ones with at least this score.", examples=[3])
    num_false_negative: Int64 = Field(description="Right ones below it.", examples=[3])
    num_true_negative: Int64 = Field(description="Wrong ones below it.", examples=[12])


class VersionFitView(View):
    """What a stored threshold was based on."""

    slope: float = Field(description="Factor of the logit of the score.", examples=[1.1])
    intercept: float = Field(description="Added to it.", examples=[-1.4])
    low: float | None = Field(description="Lower end of the threshold's 95 % interval.", examples=[0.66])
    high: float | None = Field(description="Upper end of the interval.", examples=[0.86])
    num_judgements: Int64 = Field(description="Judgements it was fitted to.", examples=[30])
    num_right: Int64 = Field(description="Right ones of them.", examples=[15])
    num_wrong: Int64 = Field(description="Wrong ones of them.", examples=[15])
    target_precision: float | None = Field(description="The precision that was asked for, if one was.")
    before: QualityView | None = Field(description="Of the threshold before.")
    after: QualityView | None = Field(description="Of the new threshold, on the judgements it was fitted to.")


class ThresholdVersionView(View):
    """A change of a label's threshold by feedback."""

    object: Literal["threshold_version"] = Field(default="threshold_version", description="Type of this object.")
    id: str = Field(description="Id of the version.", examples=[_VERSION_ID])
    kind: Literal["fit", "revert"] = Field(description="A fitted threshold, or the return to the one before.")
    label_id: str = Field(description="Id of the label.", examples=[_LABEL_ID])
    label: str = Field(description="Name of the label at the time.", examples=["golden retriever"])
    threshold_before: float | None = Field(description="Null: the model's default.")
    threshold: float | None = Field(description="From then on; null: the model's default.", examples=[0.77])
    fingerprint: str = Field(description="Model whose scores it is for.", examples=["photo-small-4f6c1a"])
    calibration: str | None = Field(description="Calibration whose scores it is for; null: the model's own.")
    client: str = Field(
        description="Id of the API key, else address, of who applied it; `auto`: the service.", examples=["auto"]
    )
    created_at_ms: Int64 = Field(description="Unix time in milliseconds.", examples=[_TIME_MS])
    reverts: str | None = Field(description="The version that a revert took back.")
    fit: VersionFitView | None = Field(description="What a fitted threshold was based on.")


class ThresholdVersionListView(View):
    """The changes of a label's threshold by feedback."""

    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[ThresholdVersionView] = Field(description="The versions, newest first.")
    has_more: bool = Field(description="Always false: the newest hundred are kept.")
    first_id: str | None = Field(description="Id of the first version; null without any.")
    last_id: str | None = Field(description="Id of the last version; null without any.")


class FeedbackView(View):
    """The stored judgements."""

    object: Literal["feedback"] = Field(default="feedback", description="Type of this object.")
    judgements: list[JudgementView] = Field(description="The judgements, in the order of the request.")
    labels: list[JudgedLabelView] = Field(description="The judged labels.")
    applied: list[ThresholdVersionView] = Field(
        description="Thresholds that the service has applied itself, if `VIDLEX_FEEDBACK_APPLY` is `auto`."
    )


class FitView(View):
    """The threshold that the judgements of a label propose. Nothing is stored until it is applied."""

    object: Literal["threshold_fit"] = Field(default="threshold_fit", description="Type of this object.")
    label_id: str = Field(description="Id of the label.", examples=[_LABEL_ID])
    label: str = Field(description="Name of the label.", examples=["golden retriever"])
    status: Literal["ready", "too_few", "one_sided", "not_separable", "target_not_reached"] = Field(
        description="`ready`: there is a threshold. `too_few`: of usable judgements. `one_sided`: less than three "
        "videos are right, or less than three wrong. `not_separable`: the scores do not tell right from wrong. "
        "`target_not_reached`: no score has the precision that was asked for."
    )
    proposal: str = Field(
        description="Identifies the proposal, for `apply_threshold`; changes with the judgements.",
        examples=["3f1c9a7be2d04568"],
    )
    model: ModelView = Field(description="The served model; only its scores count.")
    calibration: str | None = Field(description="The namespace's calibration; only its scores count.")
    min_judgements: Int64 = Field(description="Usable judgements from which a threshold is fitted.", examples=[30])
    num_judgements: Int64 = Field(description="Judgements of the label.", examples=[33])
    num_right: Int64 = Field(description="Usable ones by which the label applies.", examples=[15])
    num_wrong: Int64 = Field(description="Usable ones by which it does not.", examples=[15])
    num_other_scale: Int64 = Field(
        description="With a score of another model or calibration, and no kept features of this one.", examples=[2]
    )
    num_other_name: Int64 = Field(description="From before the label was renamed.", examples=[0])
    num_unscored: Int64 = Field(description="Without a score.", examples=[1])
    threshold_before: float = Field(description="The threshold in use.", examples=[0.5])
    threshold: float | None = Field(description="The proposed one; null unless the status is `ready`.", examples=[0.77])
    low: float | None = Field(description="Lower end of its 95 % interval; null with `target_precision`.")
    high: float | None = Field(description="Upper end of the interval.", examples=[0.86])
    beyond_uncertainty: bool = Field(description="Whether the threshold in use lies outside the interval.")
    target_precision: float | None = Field(description="The precision that was asked for.")
    slope: float | None = Field(description="Factor of the logit of the score; 1 is the model's.", examples=[1.1])
    intercept: float | None = Field(description="Added to it; 0 is the model's.", examples=[-1.4])
    before: QualityView | None = Field(description="Of the threshold in use; null without usable judgements.")
    after: QualityView | None = Field(description="Of the proposed one, on the judgements it was fitted to.")
    cross_validated: QualityView | None = Field(
        description="Of the procedure, on videos that each threshold was not fitted to; null with `target_precision`."
    )
    applied: ThresholdVersionView | None = Field(description="The fitted threshold that the label has, if any.")
    stale: bool = Field(description="Whether `applied` is for another model, calibration or name than the present one.")
    warnings: list[WarningView] = Field(
        description="`judged_videos`: rates are of judged videos, no random sample. `threshold_stale`: see `stale`. "
        "`at_edge`: the threshold is the lowest or highest judged score. `other_scale`: judgements of another model or "
        "calibration do not count. `renamed`: those of another name do not count."
    )
