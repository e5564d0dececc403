"""``python -m vidlex.migrations [--dry-run] URL``: migrate the store at a redis:// URL. Prints JSON.

Exit status 1 on failure. --dry-run writes nothing.
"""

from __future__ import annotations

import json
import sys

import redis

from vidlex.migrations.runner import MigrationError, migrate, pending, schema_version


def main(arguments: list[str]) -> int:
    dry_run = "--dry-run" in arguments
    urls = [argument for argument in arguments if argument != "--dry-run"]
    if len(urls) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        client = redis.Redis.from_url(urls[0])
        if dry_run:
            print(json.dumps({"pending": pending(client), "schema": schema_version(client)}))
            return 0
        applied = migrate(client)
        print(json.dumps({"applied": applied, "schema": schema_version(client)}))
    except (MigrationError, redis.RedisError, ValueError) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
