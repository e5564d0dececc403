"""``python -m vidlex.service.print_openapi``: prints the OpenAPI document, without starting the service."""

from __future__ import annotations

import json

from vidlex.service.app import create_app
from vidlex.service.settings import load_settings


def main() -> None:
    app = create_app(load_settings(traces="off"))  # the document does not depend on settings
    print(json.dumps(app.openapi(), indent=2))


if __name__ == "__main__":
    main()
