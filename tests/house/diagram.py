"""Draws the folders of the code and their imports as an SVG picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from html import escape

from house.imports import below, imports

# Without small files that many import, and without the benchmarks, which import everything.
_SUBJECTS = {
    "service.cli": "command line",
    "service.commands": "one file per command",
    "service.server": "uvicorn, signals",
    "service.app": "the FastAPI application",
    "service.runtime": "start, watch, stop",
    "service.routes": "routes and their views",
    "service.views": "answers to videos",
    "service.http": "uploads, access guard, errors",
    "service.access": "API keys",
    "service.classification": "a video to its labels",
    "service.models": "loaded and served models",
    "service.registration": "a label to its vector",
    "service.engine": "batches on devices",
    "service.decode": "killable decode processes",
    "service.labels.index": "vectors in memory",
    "service.labels.store": "labels in Redis",
    "service.labels.embedded": "Valkey of our own",
    "service.schemas": "bodies and answers",
    "model.suite": "the experiment",
    "model.sources": "training data",
    "model.train": "training",
    "model.eval": "metrics",
    "model.emoji": "the procedural world",
    "model.data": "manifests, datasets",
    "model.factory": "a model by name",
    "model.baselines": "compared methods",
    "model.video": "video encoder",
    "model.text": "label encoder",
    "model.decode": "frames of a file",
    "model.checkpoint": "checkpoints",
    "model.scoring": "similarity to probability",
    "migrations": "schema of the store",
}
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 168, 44, 18, 46, 20
_FILLS = {"service": "#dbe7f5", "model": "#f3dfe4", "migrations": "#dff0df"}


@dataclass(frozen=True)
class Box:
    x: float
    y: float


def edges() -> dict[str, frozenset[str]]:
    """Imports between shown rooms, without those that a longer path implies."""
    direct: dict[str, set[str]] = {room: set() for room in _SUBJECTS}
    for found in imports():
        source, target = _shown(found.source), _shown(found.target)
        if source and target and source != target:
            direct[source].add(target)

    @cache
    def reachable(room: str) -> frozenset[str]:
        return frozenset().union(*(reachable(other) | {other} for other in direct[room]))

    return {
        room: frozenset(target for target in targets if not any(target in reachable(o) for o in targets - {target}))
        for room, targets in direct.items()
    }


def _shown(module: str) -> str | None:
    return max((room for room in _SUBJECTS if below(module, room)), key=len, default=None)


def levels(graph: Mapping[str, frozenset[str]]) -> dict[str, int]:
    @cache
    def level(room: str) -> int:
        return max((level(target) + 1 for target in graph[room]), default=0)

    return {room: level(room) for room in graph}


def layout(graph: Mapping[str, frozenset[str]]) -> tuple[dict[str, Box], float, float]:
    rows: dict[int, list[str]] = {}
    for room, level in levels(graph).items():
        rows.setdefault(level, []).append(room)
    widest = max(map(len, rows.values()))
    width = 2 * _MARGIN + widest * (_WIDTH + _GAP_X) - _GAP_X
    top = max(rows)
    boxes: dict[str, Box] = {}
    for level, rooms in sorted(rows.items()):
        targets = {room: [boxes[t].x for t in graph[room] if t in boxes] for room in rooms}
        rooms.sort(key=lambda r: (r.startswith("model"), sum(targets[r]) / len(targets[r]) if targets[r] else 0.0, r))
        row_width = len(rooms) * (_WIDTH + _GAP_X) - _GAP_X
        spread = (width - 2 * _MARGIN - row_width) / (len(rooms) + 1)
        for i, room in enumerate(rooms):
            x = _MARGIN + spread * (i + 1) + i * (_WIDTH + _GAP_X)
            boxes[room] = Box(x, _MARGIN + (top - level) * (_HEIGHT + _GAP_Y))
    return boxes, width, 2 * _MARGIN + (top + 1) * (_HEIGHT + _GAP_Y) - _GAP_Y


def draw() -> str:
    graph = edges()
    boxes, width, height = layout(graph)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-family="sans-serif">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
    ]
    for room, targets in graph.items():
        for target in sorted(targets):
            x1, y1 = boxes[room].x + _WIDTH / 2, boxes[room].y + _HEIGHT
            x2, y2 = boxes[target].x + _WIDTH / 2, boxes[target].y
            bend = (y2 - y1) / 2
            path = f"M{x1:g} {y1:g}C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"
            lines.append(f'<path d="{path}" fill="none" stroke="#99a" marker-end="url(#head)"/>')
    for room, box in boxes.items():
        fill, middle = _FILLS[room.partition(".")[0]], box.x + _WIDTH / 2
        lines += [
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="4" fill="{fill}" '
            'stroke="#556"/>',
            f'<text x="{middle:g}" y="{box.y + 19:g}" font-size="13" text-anchor="middle">'
            f"{escape(room.replace('.', '/'))}</text>",
            f'<text x="{middle:g}" y="{box.y + 35:g}" font-size="10.5" fill="#445" text-anchor="middle">'
            f"{escape(_SUBJECTS[room])}</text>",
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
