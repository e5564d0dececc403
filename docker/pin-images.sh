#!/bin/sh
# Prints lines for .env that pin every image of others to the digest that its tag has now: sh docker/pin-images.sh >>.env
# Needs the registries. Run it again to take updates, and test them with `make test-images`.
set -eu
cd "$(dirname "$0")/.."
sed -n 's/.*\${\([A-Z]*_IMAGE\):-\([^}]*\)}.*/\1 \2/p' docker-compose.yml | grep -v '^SERVICE_' | sort -u |
    while read -r variable image; do
        digest=$(docker buildx imagetools inspect "$image" --format '{{.Manifest.Digest}}')
        echo "$variable=${image%%:*}:${image##*:}@$digest"
    done
