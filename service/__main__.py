"""``python -m vidlex.service``: runs the service, configured by VIDLEX_* variables only."""

from __future__ import annotations

import sys

from vidlex.service.server import serve
from vidlex.service.settings import SettingsError, load_settings


def main() -> int:
    try:
        settings = load_settings()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if serve(settings) is None else 1


if __name__ == "__main__":
    sys.exit(main())
