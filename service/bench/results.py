"""Writes RESULTS.md from reports in JSON Lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from vidlex.service.bench.harness import BenchError, Case, Report, rows
from vidlex.service.bench.machine import MachineFacts

_HEAD = """# Measured

Each benchmark is described in `service/bench/<name>.py` and run with `vidlex bench <name>`; `fuzz` is in `tests/fuzz`
and run with `make fuzz`. Sides are measured in turn in the same run. A time is the median of the repetitions, with the
smallest and the largest in brackets. A ratio is the median over pairs of neighbouring repetitions; above 1, Vidlex is
faster. The floor is the least time that the machine's measured rates allow. This file is written by
`vidlex bench results`.
"""


def read_reports(paths: Iterable[Path]) -> list[Report]:
    """Raises BenchError."""
    found = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise BenchError(f"{path}: {error.strerror or error}") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    found.append(Report.model_validate_json(line))
                except ValidationError as error:
                    raise BenchError(f"{path}, line {number} is not a report: {error.errors()[0]['msg']}") from None
    return found


def markdown(reports: Sequence[Report]) -> str:
    """Raises BenchError for reports of quick runs."""
    quick = sorted({report.bench for report in reports if report.quick})
    if quick:
        raise BenchError(f"quick runs are not results: {', '.join(quick)}")
    parts = [_HEAD, _summary(reports)]
    by_machine: dict[str, list[Report]] = {}
    for report in sorted(reports, key=lambda found: found.bench):
        by_machine.setdefault(_machine(report.machine), []).append(report)
    for number, (machine, here) in enumerate(by_machine.items(), 1):
        parts.append(f"## Machine {number}\n\n{machine}\n")
        parts += [_section(report) for report in here]
    return "\n".join(parts)


def _summary(reports: Sequence[Report]) -> str:
    lines = [
        "## Targets",
        "",
        "| benchmark | case | measurement | value | target | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for report in sorted(reports, key=lambda found: found.bench):
        for case in report.cases:
            for name, value, target, outcome in rows(case):
                if target:
                    outcome_cell = outcome if outcome == "met" else f"**{outcome}**"
                    cells = (report.bench, case.name, name, value, target, outcome_cell)
                    lines.append(_row(cells))
    return "\n".join([*lines, ""])


def _machine(facts: MachineFacts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    gpu = f", {facts.gpu}" if facts.gpu else ""
    hardware = f"{facts.cpu}, {facts.num_cores} cores, {facts.memory_bytes / 2**30:.0f} GiB{gpu}; {facts.system}"
    return f"{hardware}; Python {facts.python}; {versions}"


def _section(report: Report) -> str:
    facts = report.machine
    threads = "" if facts.num_torch_threads is None else f", {facts.num_torch_threads} torch threads"
    commit = f", commit {facts.commit}" if facts.commit else ""
    lines = [f"### {report.bench}", "", f"`{facts.command}`, {facts.at}{commit}{threads}", ""]
    return "\n".join([*lines, *(_table(case) for case in report.cases)])


def _table(case: Case) -> str:
    lines = [f"**{_cell(case.name)}**", "", "| | value | target | |", "| --- | --- | --- | --- |"]
    lines += [_row(row) for row in rows(case)]
    return "\n".join([*lines, "", *([case.note, ""] if case.note else [])])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
