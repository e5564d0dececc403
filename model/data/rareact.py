"""RareAct: rare pairs of verb and noun ("hammer a phone") in ten-second windows, judged with hard negatives.

Codes of a row (video, window, verb, noun): 1 the action is there; 2 only the verb; 3 only the noun; 4 both, but the
verb is not done to the noun; 0 the action is not there. What a code does not say is unknown. Where the action of one
class is there (code 1), every other class is judged as absent, as the official score does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidlex.model.data.annotations import AnnotationError, read_csv
from vidlex.model.data.dataset import DatasetFacts, LabelText, VideoFiles, relative, write_dataset
from vidlex.model.data.manifest import Entry

NUM_ROWS = 7607
NUM_CLASSES = 149
_COLUMNS = ("id", "video_id", "start", "end", "class_id", "verb", "noun", "annotation")
_REMEDY = "take rareact.csv of github.com/antoine77340/RareAct as it is"
_PROMPT_NOUNS = {"clothe": "clothes"}
_NO_ARTICLE = frozenset(("bacon", "carrots", "chocolate", "clothe", "corn", "eggs", "hair", "shoes"))
VERB_IS_THERE = {1: True, 2: True, 3: False, 4: True}
NOUN_IS_THERE = {1: True, 2: False, 3: True, 4: True}
"""By code; 0 leaves both unknown."""


@dataclass(frozen=True)
class Rating:
    """One row of rareact.csv, times in seconds."""

    row: int
    video: str
    start: int
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
    pair_of: dict[int, tuple[str, str]] = {}
    for row in read_csv(path, _COLUMNS, missing_column=_REMEDY):
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
        if pair_of.setdefault(rating.class_id, (rating.verb, rating.noun)) != (rating.verb, rating.noun):
            raise row.error(f"class {rating.class_id} has two pairs of verb and noun", _REMEDY)
        ratings.append(rating)
    return ratings


def labels_of(ratings: list[Rating]) -> dict[str, LabelText]:
    """Actions by class id, then verbs and nouns by name, in name spaces of their own ("microwave" is both)."""
    actions = {r.class_id: r for r in ratings}
    labels = {
        r.action: LabelText(f"{r.verb} {_with_article(r.noun)}", "action", str(i)) for i, r in sorted(actions.items())
    }
    labels |= {f"verb:{verb}": LabelText(verb, "verb", verb) for verb in sorted({r.verb for r in ratings})}
    nouns = sorted({r.noun for r in ratings})
    return labels | {f"noun:{noun}": LabelText(_PROMPT_NOUNS.get(noun, noun), "noun", noun) for noun in nouns}


def _with_article(noun: str) -> str:
    shown = _PROMPT_NOUNS.get(noun, noun)
    if noun in _NO_ARTICLE:
        return shown
    return f"{'an' if shown[0] in 'aeiou' else 'a'} {shown}"


def truths(ratings: list[Rating]) -> dict[tuple[str, int, int], dict[str, bool]]:
    """Segment -> label -> is it there; what is not named is unknown. Segments in file order.

    Of two codes for the same segment and class the one that is not 0 holds; a verb or noun seen once is there.
    """
    codes: dict[tuple[tuple[str, int, int], int], Rating] = {}
    for rating in ratings:
        key = (rating.segment, rating.class_id)
        if key not in codes or codes[key].code == 0:
            codes[key] = rating
    actions = sorted({r.action for r in ratings})
    found: dict[tuple[str, int, int], dict[str, bool]] = {r.segment: {} for r in ratings}
    for (segment, _), rating in codes.items():
        truth = found[segment]
        truth[rating.action] = rating.code == 1
        if rating.code:
            for name, is_there in ((f"verb:{rating.verb}", VERB_IS_THERE), (f"noun:{rating.noun}", NOUN_IS_THERE)):
                truth[name] = truth.get(name, False) or is_there[rating.code]
    for segment in {r.segment for r in codes.values() if r.code == 1}:
        for action in actions:
            found[segment].setdefault(action, False)
    return found


def build(
    *, annotations: Path, videos: Path, out: Path = Path("data/rareact"), num_rows: int = NUM_ROWS
) -> dict[str, Any]:
    """RareAct. ``annotations``: rareact.csv; ``videos``: files named by their YouTube ids. One line per segment. The
    rows are kept in ``rareact.csv`` beside the manifest, for the official score of `vidlex eval`. ``num_rows`` is
    checked; 0 takes any.
    """
    ratings = read_ratings(annotations)
    if num_rows and len(ratings) != num_rows:
        raise AnnotationError(annotations, None, f"{len(ratings)} rows, not {num_rows}", _REMEDY)
    files = VideoFiles(videos)
    entries: list[Entry] = []
    missing: list[str] = []
    segments = truths(ratings)
    for (video, start, end), truth in segments.items():
        path = files.find(video)
        if path is None:
            missing.append(video)
            continue
        entries.append(
            Entry(
                relative(path, out),
                tuple(label for label, is_there in truth.items() if is_there),
                tuple(label for label, is_there in truth.items() if not is_there),
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
    facts = DatasetFacts("rareact", protocol="rareact", counts=counts, note="verbs and nouns of code 0 stay unknown")
    result = write_dataset(out, entries, labels_of(ratings), missing, facts, sources=[annotations])
    (out / "rareact.csv").write_bytes(annotations.read_bytes())
    return result


def native_id(video: str, start: int, end: int) -> str:
    return f"{video}:{start}-{end}"
