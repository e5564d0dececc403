"""Status 0 when /readyz says ready; --show prints its answer. Standard library only, so that it costs little."""

import os
import sys
import urllib.error
import urllib.request


def main() -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{os.environ.get('VIDLEX_PORT', '8000')}/readyz", timeout=3) as answer:
            if "--show" in sys.argv:
                print(answer.read().decode())
            return 0 if answer.status == 200 else 1
    except urllib.error.HTTPError as error:  # 503: not ready
        print(error.read().decode() if "--show" in sys.argv else error, file=sys.stderr)
        return 1
    except OSError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
