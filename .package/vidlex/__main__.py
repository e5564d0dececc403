"""``python -m vidlex``: the command line."""

from __future__ import annotations

from vidlex.service.cli import main

main()
