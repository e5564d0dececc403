"""What every benchmark shares: ours and the references measured in turn, and a report that reads as JSON or as a table.

A benchmark is a module of this room with a function ``run(options: SomeOptions) -> Report``, where the options are a
frozen dataclass derived from `BenchOptions`. ``vidlex bench NAME`` finds it by its name, makes a flag of each field
of the options, and shows the first line of the module's text in its list. Nothing else has to be registered.

    def run(options: BenchOptions) -> Report:
        sides = [Side("vidlex", ours), Side("decord", theirs)]
        case = compare("a long video", sides, options, work=8, unit="frames", at_least={"decord": 1.0})
        return report("decode", [case], options)

Ratios are speeds: 2 means that ours takes half the time of the reference. In a quick run everything is as small as it
can be; its numbers mean nothing.
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
    """The benchmark cannot be run here, or what it compares is not equal. Written for a person."""


@dataclass(frozen=True)
class BenchOptions:
    """Fields that every benchmark has; derive from it to add others, each with a default."""

    quick: bool = False
    """A smoke run: the smallest sizes, one repetition, no warm-up."""
    repetitions: int = 5
    warmups: int = 1
    model: str = "emoji-small"
    device: str = "auto"
    seed: int = 0

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
    """One way of doing the work. ``run`` may return the seconds that count; else its whole time does."""

    name: str
    run: Callable[[], float | None]


# --- what a report holds -------------------------------------------------------------------------------------------


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Timing(_Frozen):
    """The repetitions of one side."""

    name: str
    seconds: tuple[float, ...]
    work: float = 1.0
    unit: str = ""
    """``work`` units are done in each repetition: 8 "frames"."""

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
    """How many times faster than ``against`` the first side is."""

    against: str
    of_medians: float
    pairs: tuple[float, ...]
    """The same for each repetition by itself: both sides ran within moments of each other."""
    at_least: float | None = None

    @computed_field
    @cached_property
    def of_pairs(self) -> float:
        """The median of ``pairs``: the figure that a target is held against."""
        return statistics.median(self.pairs)

    @computed_field
    @cached_property
    def met(self) -> bool | None:
        return None if self.at_least is None else self.of_pairs >= self.at_least


class Figure(_Frozen):
    """A number that is not a ratio of times: an error, a size, a share."""

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
    """The time below which this work cannot be done here, and how it was found (bytes or operations over a rate)."""

    seconds: float
    how: str


class Case(_Frozen):
    """One comparison, or one set of figures. The first timing is ours."""

    name: str
    timings: tuple[Timing, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    figures: tuple[Figure, ...] = ()
    floor: Floor | None = None
    note: str = ""

    @computed_field
    @cached_property
    def share_of_floor(self) -> float | None:
        """1 means as fast as the machine can be."""
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

    @property
    def all_met(self) -> bool:
        return all(met for case in self.cases for met in case.targets)

    def document(self) -> dict[str, object]:
        return self.model_dump(mode="json")

    def __rich__(self) -> RenderableType:
        title = Text(f"{self.bench}{' (quick: the numbers mean nothing)' if self.quick else ''}", style="bold")
        return Group(title, *(_shown(case) for case in self.cases), Text(self.machine.line(), style="dim"))


# --- measuring -----------------------------------------------------------------------------------------------------


def alternate(sides: Sequence[Side], options: BenchOptions, *, work: float = 1.0, unit: str = "") -> list[Timing]:
    """Run the sides in turn (A B, B A, A B ...), so that a machine that gets slower or warmer is unfair to none."""
    for _ in range(options.num_warmups):
        for side in sides:
            side.run()
    seconds: list[list[float]] = [[] for _ in sides]
    for repetition in range(options.num_repetitions):
        order = range(len(sides)) if repetition % 2 == 0 else reversed(range(len(sides)))
        for place in order:
            seconds[place].append(timed(sides[place].run))
    return [
        Timing(name=side.name, seconds=tuple(taken), work=work, unit=unit)
        for side, taken in zip(sides, seconds, strict=True)
    ]


def timed(action: Callable[[], float | None]) -> float:
    """The seconds that ``action`` takes or says that it took, with no garbage collection in between."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        began = time.perf_counter()
        told = action()
        return time.perf_counter() - began if told is None else told
    finally:
        if was_enabled:
            gc.enable()


def ratio(ours: Timing, reference: Timing, *, at_least: float | None = None) -> Ratio:
    """Speeds per unit of work, so that sides may do unequal amounts of it."""
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
    """``sides[0]`` against each of the others. ``at_least``: the target for the ratio against the side of that name."""
    unknown = set(at_least) - {side.name for side in sides[1:]}
    if unknown:
        raise ValueError(f"a target against {sorted(unknown)}, which is no reference of {name!r}")
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
    told = {name: value if isinstance(value, str | int | float | bool) or value is None else str(value)
            for name, value in vars(options).items()}  # fmt: skip
    return Report(bench=bench, quick=options.quick, options=told, cases=tuple(cases), machine=machine_facts())


# --- showing -------------------------------------------------------------------------------------------------------

Verdict = Literal["met", "missed", ""]


def verdict(met: bool | None) -> Verdict:
    return "" if met is None else "met" if met else "missed"


def rows(case: Case) -> list[tuple[str, str, str, Verdict]]:
    """(what, value, target, met or missed) of everything in a case, for any kind of table."""
    found: list[tuple[str, str, str, Verdict]] = []
    for timing in case.timings:
        rate = f", {quantity(timing.per_second)} {timing.unit}/s" if timing.unit else ""
        spread = f"{duration(timing.min_seconds)} to {duration(timing.max_seconds)}"
        found.append((timing.name, f"{duration(timing.median_seconds)} ({spread}){rate}", "", ""))
    for found_ratio in case.ratios:
        target = "" if found_ratio.at_least is None else f">= {found_ratio.at_least:g}"
        value = f"{found_ratio.of_pairs:.2f}x ({min(found_ratio.pairs):.2f} to {max(found_ratio.pairs):.2f})"
        found.append((f"speed against {found_ratio.against}", value, target, verdict(found_ratio.met)))
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


def _shown(case: Case) -> RenderableType:
    colours = {"met": "green", "missed": "bold red", "": ""}
    table = Table(title=case.name, caption=case.note or None, title_justify="left", caption_justify="left")
    for header in ("", "value", "target", ""):
        table.add_column(header)
    for what, value, target, how in rows(case):
        table.add_row(Text(what), Text(value), Text(target), Text(how, style=colours[how]))
    return table
