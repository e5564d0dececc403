"""A row of the suite: one trained and evaluated model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAIN, WITHOUT_LLM = "main", "without the LLM"  # groups of rows that are trained in full and leave checkpoints


@dataclass(frozen=True)
class Row:
    """Stored in the row's JSON file, together with its metrics."""

    method: str
    seed: int = 0
    change: str = ""  # of an ablation; empty in the main table
    group: str = MAIN
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        return self.group in (MAIN, WITHOUT_LLM)

    @property
    def key(self) -> str:
        # The name of the row's files.
        group, change = ("".join(c if c.isalnum() else "-" for c in text) for text in (self.group, self.change))
        return "_".join(part for part in (group, self.method, change, f"seed{self.seed}") if part)


def row_file(out: Path, row: Row) -> Path:
    return out / "rows" / f"{row.key}.json"
