"""Cells of CSV files that a spreadsheet would take for a formula: they begin with "'".

https://owasp.org/www-community/attacks/CSV_Injection
"""

from __future__ import annotations

import re

_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_FORMULA_OR_QUOTE = re.compile(r"[=+\-@\t\r\n']")


def guarded(cell: str, *, every_quote: bool = False) -> str:
    """``every_quote``: a cell that begins with "'" gets another one, whatever follows it: see ``unguarded``."""
    found = (_FORMULA_OR_QUOTE if every_quote else _FORMULA).match(cell)
    return f"'{cell}" if found else cell


def unguarded(cell: str, *, every_quote: bool = False) -> str:
    """What ``guarded`` got. Without ``every_quote`` texts that people write, such as 'tis, stay as they are."""
    is_guarded = cell.startswith("'") and (every_quote or _FORMULA.match(cell))
    return cell[1:] if is_guarded else cell
