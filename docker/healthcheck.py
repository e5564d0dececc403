"""Status 0 when /readyz says ready. For Docker's HEALTHCHECK; standard library only, so that it costs little."""

import os
import sys
import urllib.request


def main() -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{os.environ.get('VIDLEX_PORT', '8000')}/readyz", timeout=3) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
