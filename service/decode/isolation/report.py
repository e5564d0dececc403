"""What a decode process has tried in vain, and what it could still reach: the report of its isolation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

IsolationLevel = Literal["full", "partial", "none"]
Target = Literal["files", "network", "sockets", "signals", "memory", "processes", "system_calls"]
TARGETS: tuple[Target, ...] = get_args(Target)
ISOLATION_LEVELS: tuple[IsolationLevel, ...] = ("none", "partial", "full")  # increasing
_WORDS: dict[Target, str] = {
    "files": "the user's files",
    "network": "the network",
    "sockets": "Unix sockets, such as that of the label store",
    "signals": "the service by signals",
    "memory": "the service's memory",
    "processes": "new processes and programs",
    "system_calls": "all system calls",
}
_MAX_MISSING, _MAX_CHARS = 16, 200


@dataclass(frozen=True)
class Isolation:
    """``reachable``: what code in the process could get at. ``missing``: barriers that the system does not give, each
    with the reason; others may stand before the same target.
    """

    reachable: tuple[Target, ...]
    missing: tuple[str, ...]

    @property
    def level(self) -> IsolationLevel:
        if not self.reachable:
            return "full"
        return "none" if len(self.reachable) == len(TARGETS) else "partial"

    def is_at_least(self, level: IsolationLevel) -> bool:
        return ISOLATION_LEVELS.index(self.level) >= ISOLATION_LEVELS.index(level)

    def __str__(self) -> str:
        """Such as ``partial: code in a decode process could reach the network; without seccomp (...)``."""
        text: str = self.level
        if self.reachable:
            text += f": code in a decode process could reach {', '.join(_WORDS[name] for name in self.reachable)}"
        return f"{text}; without {', '.join(self.missing)}" if self.missing else text


def least(reports: Iterable[Isolation]) -> Isolation | None:
    """What holds for all of them; None without any."""
    all_reports = list(reports)
    if not all_reports:
        return None
    reachable = {name for report in all_reports for name in report.reachable}
    missing = dict.fromkeys(line for report in all_reports for line in report.missing)
    return Isolation(tuple(name for name in TARGETS if name in reachable), tuple(missing))


def isolation_of(value: Any) -> Isolation:
    """The report as a decode process has sent it. Raises ValueError, KeyError or TypeError."""
    reachable, missing = value["reachable"], value["missing"]
    if not isinstance(missing, list) or len(missing) > _MAX_MISSING or not all(isinstance(m, str) for m in missing):
        raise ValueError("not a list of what is missing")
    if not isinstance(reachable, list) or not set(reachable) <= set(TARGETS):
        raise ValueError("not a list of what can be reached")
    return Isolation(tuple(name for name in TARGETS if name in reachable), tuple(m[:_MAX_CHARS] for m in missing))
