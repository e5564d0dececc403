"""What a run measured, and the document that shows it."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field

LAYERS = ("packages", "list of packages (SBOM)", "fetched weights and sample videos", "shipped models", "code")


@dataclass
class Results:
    engine: str = ""
    target: str = ""
    stand_ins: list[str] = field(default_factory=list)
    layers: list[tuple[str, int]] = field(default_factory=list)
    changed_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, str]] = field(default_factory=list)
    """What was tried, and what was seen."""

    def time(self, name: str, began: float) -> None:
        self.seconds[name] = time.monotonic() - began

    def step(self, name: str, seen: str) -> None:
        print(f"  {name}: {seen}", flush=True)
        self.steps.append((name, seen))

    def document(self) -> str:
        own = self.layers[-len(LAYERS) :]
        base = sum(size for _, size in self.layers[: -len(LAYERS)])
        sizes = [("base image, user and folders", base), *zip(LAYERS, (size for _, size in own), strict=True)]
        lines = [
            "# Results of `make test-images`",
            "",
            f"Written by the last run: {time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} CPUs, load "
            f"{os.getloadavg()[2]:.0f}, Linux {platform.release().partition('-')[0]}, engine {self.engine}, target "
            f"`{self.target}`.",
            "",
        ]
        if self.stand_ins:
            lines += [
                "No registry could be reached. Stand-ins from Debian and Python packages took the place of these:",
                "",
                *(f"- `{name}`" for name in self.stand_ins),
                "",
            ]
        lines += ["| layer | MB |", "| --- | --- |"]
        lines += [f"| {name} | {size / 1e6:,.1f} |" for name, size in sizes]
        lines += [f"| all | {sum(size for _, size in sizes) / 1e6:,.1f} |"]
        lines += [f"| pushed after a change of one line of code | {self.changed_bytes / 1e6:,.1f} |", ""]
        lines += ["| stage | seconds |", "| --- | --- |"]
        lines += [f"| {name} | {seconds:,.0f} |" for name, seconds in self.seconds.items()]
        lines += ["", "| tried | seen |", "| --- | --- |"]
        lines += [f"| {name} | {seen} |" for name, seen in self.steps]
        return "\n".join(lines) + "\n"
