"""Label Studio: tasks with predictions, and corrections from exported annotations (labelstud.io/guide).

A label's choice says that it applies to the video; timeline labels say when, in frames of which the first is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

from vidlex.service.exports.corrections import Correction, NotCorrections, Predicted
from vidlex.service.exports.tagged import TaggedName, TaggedVideo

VIDEO, CHOICES, TIMELINE = "video", "labels", "stretches"
"""Names of the tags in ``labelling_config``."""


def labelling_config(names: Iterable[str]) -> str:
    """The labelling interface of a project whose labels are these."""
    values = [quoteattr(name) for name in dict.fromkeys(names)]
    choices = "".join(f"    <Choice value={value}/>\n" for value in values)
    labels = "".join(f"    <Label value={value}/>\n" for value in values)
    return (
        "<View>\n"
        f'  <Video name="{VIDEO}" value="$video" frameRate="$fps" timelineHeight="120"/>\n'
        f'  <TimelineLabels name="{TIMELINE}" toName="{VIDEO}">\n{labels}  </TimelineLabels>\n'
        f'  <Choices name="{CHOICES}" toName="{VIDEO}" choice="multiple" layout="inline">\n{choices}  </Choices>\n'
        "</View>\n"
    )


def task(video: TaggedVideo, url: str | None = None) -> dict[str, Any]:
    """To import. ``url``: from which Label Studio plays the video; by default its URI."""
    data = {"video": url or video.uri, "fps": video.fps, "vidlex": vars(Predicted.of(video))}
    return {"data": data, "predictions": [prediction(video)]}


def prediction(video: TaggedVideo) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    if video.matched:
        names = [label.name for label in video.matched]
        results.append(_result("choices", CHOICES, "labels", {"choices": names}))
    for number, label in enumerate(video.matched):
        results += _timeline(video, label, number)
    score = max((label.score for label in video.matched), default=0.0)
    return {"model_version": f"{video.model_id} {video.fingerprint}", "score": score, "result": results}


def _timeline(video: TaggedVideo, label: TaggedName, number: int) -> Iterator[dict[str, Any]]:
    for place, stretch in enumerate(label.stretches):
        start, end = video.frames(stretch)
        value = {"ranges": [{"start": start, "end": end}], "timelinelabels": [label.name]}
        yield {**_result("timelinelabels", TIMELINE, f"{number}-{place}", value), "score": stretch.score}


def _result(kind: str, name: str, result_id: str, value: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": result_id, "type": kind, "from_name": name, "to_name": VIDEO, "value": dict(value)}


def read_corrections(tasks: Any) -> Iterator[Correction]:
    """Of tasks as Label Studio exports them (format JSON). Of a task the newest annotation counts.

    A predicted label that is neither chosen nor on the timeline is wrong. Raises NotCorrections.
    """
    if not isinstance(tasks, list):
        raise NotCorrections("this is no list of tasks")
    for number, item in enumerate(tasks):
        try:
            yield from _corrections(item)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NotCorrections(f"task {number}: {type(error).__name__}: {error}") from error


def _corrections(item: Mapping[str, Any]) -> Iterator[Correction]:
    annotations = [a for a in item.get("annotations") or () if not a.get("was_cancelled")]
    if not annotations:
        return
    newest = max(annotations, key=lambda a: str(a.get("updated_at") or ""))
    data = item["data"]
    predicted = Predicted.from_json(data.get("vidlex") or {})
    if not (predicted.video_id or predicted.sha256):
        raise NotCorrections("data.vidlex names no video: the task was not exported by Vidlex")
    fps = float(data.get("fps") or 0)
    chosen: list[str] = []
    parts: list[Correction] = []
    for result in newest.get("result") or ():
        value = result.get("value") or {}
        chosen += [str(name) for name in value.get("choices") or ()]
        names = [str(name) for name in value.get("timelinelabels") or ()]
        chosen += names
        if fps > 0:
            for part in value.get("ranges") or ():
                start_ms = round((int(part["start"]) - 1) * 1000 / fps)
                end_ms = max(start_ms, round(int(part["end"]) * 1000 / fps))
                parts += [predicted.judge(name, True, start_ms, end_ms) for name in names]
    yield from predicted.judge_all(chosen)
    yield from parts
