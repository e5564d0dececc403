"""The benchmark harness: measures Vidlex and references in turn, and reports as JSON or as a table.

A benchmark is a module of this package with a function ``run(options: SomeOptions) -> Report``, where SomeOptions is a
frozen dataclass derived from `BenchOptions`. ``vidlex bench NAME`` finds it by its module name, makes a flag of each
field, and lists it with the first paragraph of the module's docstring.

    def run(options: BenchOptions) -> Report:
        sides = [Side("vidlex", ours), Side("decord", theirs)]
        case = compare("a long video", sides, options, work=8, unit="frames", at_least={"decord": 1.0})
        return report("decode", [case], options)

Ratios are speeds: 2 means that Vidlex takes half the time of the reference. A quick run uses the smallest sizes and its
numbers are not results.
"""

# mypy: disable-error-code="prop-decorator"
from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vidlex.service.bench.machine import MachineFacts, machine_facts


class BenchError(ValueError):
    """The benchmark cannot run here, or the compared sides disagree."""


@dataclass(frozen=True)
class BenchOptions:
    """Subclasses add fields with a default and a docstring, the help text."""

    quick: bool = False
    """Smallest sizes, one repetition, no warm-up; not a result."""
    repetitions: int = 5
    """Measured runs of each side."""
    warmups: int = 1
    """Runs of each side before measuring."""
    model: str = "emoji-small"
    """Model, as for `vidlex serve --model`."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of random data."""

    def __post_init__(self) -> None:
        if self.repetitions < 1 or self.warmups < 0:
            raise ValueError(f"{self.repetitions = } must be positive and {self.warmups = } not negative")

    @property
    def num_repetitions(self) -> int:
        return 1 if self.quick else self.repetitions

    @property
    def num_warmups(self) -> int:
        return 0 if self.quick else self.warmups


@dataclass(frozen=True)
class Side:
    """If ``run`` returns seconds they are the measurement; otherwise its duration is."""

    name: str
    run: Callable[[], float | None]


# --- reports -------------------------------------------------------------------------------------------------------


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Timing(_Frozen):
    name: str
    seconds: tuple[float, ...]
    work: float = 1.0  # of each repetition
    unit: str = ""

    @computed_field
    @cached_property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @computed_field
    @cached_property
    def min_seconds(self) -> float:
        return min(self.seconds)

    @computed_field
    @cached_property
    def max_seconds(self) -> float:
        return max(self.seconds)

    @computed_field
    @cached_property
    def per_second(self) -> float:
        return self.work / max(self.median_seconds, 1e-12)


class Ratio(_Frozen):
    """Speed of the first side over that of ``against``; ``pairs``: in each repetition."""

    against: str
    of_medians: float
    pairs: tuple[float, ...]
    at_least: float | None = None

    @computed_field
    @cached_property
    def of_pairs(self) -> float:
        return statistics.median(self.pairs)

    @computed_field
    @cached_property
    def met(self) -> bool | None:
        return None if self.at_least is None else self.of_pairs >= self.at_least


class Figure(_Frozen):
    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @computed_field
    @cached_property
    def met(self) -> bool | None:
        if self.at_least is None and self.at_most is None:
            return None
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= self.value <= high


class Floor(_Frozen):
    """The least time that this machine needs for the work."""

    seconds: float
    how: str  # bytes or operations over a rate


class Case(_Frozen):
    """The first timing is that of Vidlex."""

    name: str
    timings: tuple[Timing, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    figures: tuple[Figure, ...] = ()
    floor: Floor | None = None
    note: str = ""

    @computed_field
    @cached_property
    def share_of_floor(self) -> float | None:
        return None if self.floor is None or not self.timings else self.floor.seconds / self.timings[0].median_seconds

    @property
    def targets(self) -> list[bool]:
        verdicts = (*(item.met for item in self.ratios), *(item.met for item in self.figures))
        return [met for met in verdicts if met is not None]


class Report(_Frozen):
    bench: str
    quick: bool
    options: dict[str, str | int | float | bool | None]
    cases: tuple[Case, ...]
    machine: MachineFacts

    def document(self) -> dict[str, object]:
        return self.model_dump(mode="json")

    def __rich__(self) -> RenderableType:
        title = Text(f"{self.bench}{' (quick run: not a result)' if self.quick else ''}", style="bold")
        return Group(title, *(_table(case) for case in self.cases), Text(self.machine.describe(), style="dim"))


# --- measuring -----------------------------------------------------------------------------------------------------


def alternate(sides: Sequence[Side], options: BenchOptions, *, work: float = 1.0, unit: str = "") -> list[Timing]:
    """Times the sides in turn (A B, B A, A B ...), so that a change in the speed of the machine affects all of them."""
    for _ in range(options.num_warmups):
        for side in sides:
            side.run()
    seconds: list[list[float]] = [[] for _ in sides]
    for repetition in range(options.num_repetitions):
        order = range(len(sides)) if repetition % 2 == 0 else reversed(range(len(sides)))
        for index in order:
            seconds[index].append(timed(sides[index].run))
    return [
        Timing(name=side.name, seconds=tuple(measured), work=work, unit=unit)
        for side, measured in zip(sides, seconds, strict=True)
    ]


def timed(action: Callable[[], float | None]) -> float:
    """Seconds returned by ``action``, else its duration, without garbage collection."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        began = time.perf_counter()
        seconds = action()
        return time.perf_counter() - began if seconds is None else seconds
    finally:
        if was_enabled:
            gc.enable()


def ratio(ours: Timing, reference: Timing, *, at_least: float | None = None) -> Ratio:
    """Compares speeds per unit of work; the sides may do different amounts."""
    scale = ours.work / reference.work
    pairs = tuple(
        scale * theirs / max(mine, 1e-12) for mine, theirs in zip(ours.seconds, reference.seconds, strict=True)
    )
    medians = scale * reference.median_seconds / max(ours.median_seconds, 1e-12)
    return Ratio(against=reference.name, of_medians=medians, pairs=pairs, at_least=at_least)


def compare(
    name: str,
    sides: Sequence[Side],
    options: BenchOptions,
    *,
    work: float = 1.0,
    unit: str = "",
    at_least: Mapping[str, float] = {},
    floor: Floor | None = None,
    figures: Sequence[Figure] = (),
    note: str = "",
) -> Case:
    """Compare ``sides[0]`` with each other side. ``at_least``: target ratios by the name of a reference."""
    unknown = set(at_least) - {side.name for side in sides[1:]}
    if unknown:
        raise ValueError(f"at_least names {sorted(unknown)}, not a reference of {name!r}")
    ours, *references = alternate(sides, options, work=work, unit=unit)
    return Case(
        name=name,
        timings=(ours, *references),
        ratios=tuple(ratio(ours, other, at_least=at_least.get(other.name)) for other in references),
        figures=tuple(figures),
        floor=floor,
        note=note,
    )


def report(bench: str, cases: Sequence[Case], options: BenchOptions) -> Report:
    shown = {
        name: value if isinstance(value, str | int | float | bool) or value is None else str(value)
        for name, value in vars(options).items()
    }
    return Report(bench=bench, quick=options.quick, options=shown, cases=tuple(cases), machine=machine_facts())


# --- output --------------------------------------------------------------------------------------------------------

Verdict = Literal["met", "missed", ""]


def verdict(met: bool | None) -> Verdict:
    return "" if met is None else "met" if met else "missed"


def rows(case: Case) -> list[tuple[str, str, str, Verdict]]:
    # (name, value, target, verdict)
    found: list[tuple[str, str, str, Verdict]] = []
    for timing in case.timings:
        rate = f", {quantity(timing.per_second)} {timing.unit}/s" if timing.unit else ""
        spread = f"{duration(timing.min_seconds)} to {duration(timing.max_seconds)}"
        found.append((timing.name, f"{duration(timing.median_seconds)} ({spread}){rate}", "", ""))
    for item in case.ratios:
        target = "" if item.at_least is None else f">= {item.at_least:g}"
        value = f"{item.of_pairs:.2f}x ({min(item.pairs):.2f} to {max(item.pairs):.2f})"
        found.append((f"speed against {item.against}", value, target, verdict(item.met)))
    for figure in case.figures:
        low = "" if figure.at_least is None else f">= {quantity(figure.at_least)}"
        high = "" if figure.at_most is None else f"<= {quantity(figure.at_most)}"
        value = f"{quantity(figure.value)} {figure.unit}".rstrip()
        found.append((figure.name, value, " and ".join(filter(None, (low, high))), verdict(figure.met)))
    if case.floor is not None:
        share = "" if case.share_of_floor is None else f", {case.share_of_floor:.0%} reached"
        found.append(("floor", f"{duration(case.floor.seconds)} ({case.floor.how}){share}", "", ""))
    return found


def duration(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if abs(seconds) * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def quantity(value: float) -> str:
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(case: Case) -> RenderableType:
    colours = {"met": "green", "missed": "bold red", "": ""}
    table = Table(title=case.name, caption=case.note or None, title_justify="left", caption_justify="left")
    for header in ("", "value", "target", ""):
        table.add_column(header)
    for name, value, target, outcome in rows(case):
        table.add_row(Text(name), Text(value), Text(target), Text(outcome, style=colours[outcome]))
    return table
