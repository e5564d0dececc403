"""RareAct: rare pairs of verb and noun ("hammer a phone") in ten-second segments, with hard negatives.

Codes of a row (segment, verb, noun): 1 the action is present; 2 only the verb; 3 only the noun; 4 both, but the verb
does not apply to the noun; 0 the action is absent, verb and noun are unknown. Where one action is present (code 1),
every other action counts as absent, as in the official score.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlex.model.data.annotations import AnnotationError, read_csv
from vidlex.model.data.dataset import DatasetInfo, LabelInfo, VideoFiles, relative_path, write_dataset
from vidlex.model.data.manifest import Entry

NUM_ROWS = 7607
NUM_CLASSES = 149
_COLUMNS = ("id", "video_id", "start", "end", "class_id", "verb", "noun", "annotation")
_REMEDY = "take rareact.csv of github.com/antoine77340/RareAct as it is"
_PROMPT_NOUNS = {"clothe": "clothes"}
_NO_ARTICLE = frozenset(("bacon", "carrots", "chocolate", "clothe", "corn", "eggs", "hair", "shoes"))
_VERB_PRESENT = {1: True, 2: True, 3: False, 4: True}
_NOUN_PRESENT = {1: True, 2: False, 3: True, 4: True}


@dataclass(frozen=True)
class Rating:
    row: int
    video: str
    start: int  # seconds
    end: int
    class_id: int
    verb: str
    noun: str
    code: int

    @property
    def segment(self) -> tuple[str, int, int]:
        return self.video, self.start, self.end

    @property
    def action(self) -> str:
        return f"action:{self.verb} {self.noun}"


def read_ratings(path: Path) -> list[Rating]:
    """All rows in file order. Raises AnnotationError."""
    ratings: list[Rating] = []
    pairs: dict[int, tuple[str, str]] = {}
    for row in read_csv(path, _COLUMNS, missing_column_remedy=_REMEDY):
        start = row.integer("start")
        rating = Rating(
            row.integer("id"),
            row.youtube_id("video_id"),
            start,
            row.integer("end", low=start + 1),
            row.integer("class_id", high=NUM_CLASSES - 1),
            row["verb"],
            row["noun"],
            row.integer("annotation", high=4),
        )
        if rating.row != len(ratings):
            raise row.error(f"id {rating.row} where {len(ratings)} should be: the order counts", _REMEDY)
        if pairs.setdefault(rating.class_id, (rating.verb, rating.noun)) != (rating.verb, rating.noun):
            raise row.error(f"class {rating.class_id} has two pairs of verb and noun", _REMEDY)
        ratings.append(rating)
    return ratings


def build_labels(ratings: list[Rating]) -> dict[str, LabelInfo]:  # prefixed keys: "microwave" is both verb and noun
    actions = {r.class_id: r for r in ratings}
    labels = {
        r.action: LabelInfo(f"{r.verb} {_with_article(r.noun)}", "action", str(i)) for i, r in sorted(actions.items())
    }
    labels |= {f"verb:{verb}": LabelInfo(verb, "verb", verb) for verb in sorted({r.verb for r in ratings})}
    nouns = sorted({r.noun for r in ratings})
    return labels | {f"noun:{noun}": LabelInfo(_PROMPT_NOUNS.get(noun, noun), "noun", noun) for noun in nouns}


def _with_article(noun: str) -> str:
    text = _PROMPT_NOUNS.get(noun, noun)
    if noun in _NO_ARTICLE:
        return text
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def segment_truth(ratings: list[Rating]) -> dict[tuple[str, int, int], dict[str, bool]]:
    """Segment -> label -> whether it is present; labels without an entry are unknown. Segments in file order.

    Of two codes for the same segment and class, the non-zero one applies. A verb or noun is present if any row says so.
    """
    rating_of: dict[tuple[tuple[str, int, int], int], Rating] = {}
    for rating in ratings:
        key = (rating.segment, rating.class_id)
        if key not in rating_of or rating_of[key].code == 0:
            rating_of[key] = rating
    actions = sorted({r.action for r in ratings})
    truth: dict[tuple[str, int, int], dict[str, bool]] = {r.segment: {} for r in ratings}
    for (segment, _), rating in rating_of.items():
        labels = truth[segment]
        labels[rating.action] = rating.code == 1
        if rating.code:
            for name, is_present in ((f"verb:{rating.verb}", _VERB_PRESENT), (f"noun:{rating.noun}", _NOUN_PRESENT)):
                labels[name] = labels.get(name, False) or is_present[rating.code]
    for segment in {r.segment for r in rating_of.values() if r.code == 1}:
        for action in actions:
            truth[segment].setdefault(action, False)
    return truth


def build(
    *, annotations: Path, videos: Path, out: Path = Path("data/rareact"), num_rows: int = NUM_ROWS
) -> dict[str, Any]:
    """Write the manifest and the labels of RareAct, with one entry per segment.

    The manifest's folder receives a copy of rareact.csv, from which ``vidlex eval`` computes the official score.

    Args:
        annotations: The file rareact.csv.
        videos: Folder of the videos, named by their YouTube ids.
        out: Folder of the manifest and the labels.
        num_rows: Expected number of rows; 0 disables the check.
    """
    ratings = read_ratings(annotations)
    if num_rows and len(ratings) != num_rows:
        raise AnnotationError(annotations, None, f"{len(ratings)} rows, not {num_rows}", _REMEDY)
    files = VideoFiles(videos)
    entries: list[Entry] = []
    missing: list[str] = []
    segments = segment_truth(ratings)
    for (video, start, end), truth in segments.items():
        path = files.find(video)
        if path is None:
            missing.append(video)
            continue
        entries.append(
            Entry(
                relative_path(path, out),
                tuple(label for label, is_present in truth.items() if is_present),
                tuple(label for label, is_present in truth.items() if not is_present),
                start_ms=1000 * start,
                end_ms=1000 * end,
                native_id=native_id(video, start, end),
            )
        )
    counts = {
        "num_rows": len(ratings),
        "num_classes": len({r.class_id for r in ratings}),
        "num_classes_with_a_positive": len({r.class_id for r in ratings if r.code == 1}),
        "num_segments": len(segments),
        "num_annotated_videos": len({r.video for r in ratings}),
    }
    info = DatasetInfo("rareact", protocol="rareact", counts=counts, note="verbs and nouns of code 0 stay unknown")
    result = write_dataset(out, entries, build_labels(ratings), missing, info, sources=[annotations])
    (out / "rareact.csv").write_bytes(annotations.read_bytes())
    return result


def native_id(video: str, start: int, end: int) -> str:
    return f"{video}:{start}-{end}"
