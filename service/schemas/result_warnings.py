"""The warnings of a classification: what each says, and what can be done about it."""

from __future__ import annotations

from typing import NamedTuple


class ResultWarning(NamedTuple):
    meaning: str
    remedy: str


# By code. First those about the file, then those about the labels.
RESULT_WARNINGS: dict[str, ResultWarning] = {
    "damaged_frames": ResultWarning(
        "sampled frames cannot be decoded; the nearest good ones took their place",
        "`coverage.frames_failed` counts them; check where the file was damaged",
    ),
    "truncated_video": ResultWarning(
        "the file ends before the end that it claims; what is missing was not seen", "send the whole file"
    ),
    "second_recording": ResultWarning(
        "another recording follows in the file; only the first one was read", "send each recording as a file"
    ),
    "still_end": ResultWarning("the last frame stands until the end of the recording", "none, if nothing moved there"),
    "few_keyframes": ResultWarning(
        "there are fewer key frames than frames to sample, so that some were taken repeatedly",
        "`frame_policy=uniform`",
    ),
    "sparse_sampling": ResultWarning(
        "the budget of frames was too small for the length; short scenes may be missing",
        "classify parts with `start_ms` and `end_ms`, or raise the budget",
    ),
    "blank_frames": ResultWarning(
        "sampled frames of one colour, such as black ones, were left out of the scores", "none"
    ),
    "vocabulary_empty": ResultWarning("no label is registered", "`POST /labels`, or `candidate_labels`"),
    "no_label_selected": ResultWarning("no label passes the filters of the request", "other filters"),
    "labels_not_encoded": ResultWarning(
        "some labels were left out, because the model has not encoded them (yet)", "repeat the request later"
    ),
    "labels_left_out": ResultWarning(
        "the answer would be too long; the labels with the lowest scores were left out",
        "a higher `min_score`, filters by category, or a higher `segment_ms`",
    ),
    "store_unavailable": ResultWarning(
        "the label store does not answer; the labels may be outdated", "repair the store; `/readyz` shows its state"
    ),
    "approximate_search": ResultWarning(
        "the index was searched approximately; a label may be missing", "`top_k=0` searches exactly"
    ),
}


def describe_warnings() -> str:
    return " ".join(f"`{code}`: {warning.meaning}." for code, warning in RESULT_WARNINGS.items())
