"""``python -m migrations URL``: migrate the store at a redis:// URL. Prints JSON; status 1 when it was refused."""

from __future__ import annotations

import json
import sys

import redis

from migrations.runner import MigrationError, migrate, schema_version


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        client = redis.Redis.from_url(arguments[0])
        applied = migrate(client)
        print(json.dumps({"applied": applied, "schema": schema_version(client)}))
    except (MigrationError, redis.RedisError, ValueError) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
