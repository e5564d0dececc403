#!/bin/sh
# Replaces the replicas by those of the new image one after the other: no request fails.
#   docker compose build          (or pull; or SERVICE_IMAGE=registry/vidlex:2 in .env)
#   sh docker/upgrade.sh          from the folder of docker-compose.yml; COMPOSE_FILE and .env count as for compose
#   sh docker/upgrade.sh --stop   stops all replicas first, for a version that changes the store's schema
# A replica that is stopped tells the proxy so through /readyz while it still serves, finishes its requests, and is replaced;
# the next one follows when it is ready. The first one that does not become ready ends the upgrade: the others go on with
# the old version.
set -eu
wait_seconds=${UPGRADE_WAIT_SECONDS:-600}
pause_seconds=${UPGRADE_PAUSE_SECONDS:-5} # in which the proxy, which asks every second, sees that a replica is ready
stop=no
case "${1:-}" in
    "") ;;
    --stop) stop=yes ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
say() { echo "upgrade: $*"; }
compose() { docker compose "$@"; }

# As the proxy knows them: service-a:8000 service-b:8000
replicas=$(for upstream in $(compose exec -T proxy printenv PROXY_UPSTREAMS); do echo "${upstream%:*}"; done)

say "what the new version would change in the store"
plan=$(compose run --rm --no-deps -T migrate migrate --dry-run --json)
case "$plan" in
    *'"pending":{}'* | *'"pending": {}'*) pending=no ;;
    *'"pending"'*) pending=yes ;;
    *) say "its answer is not understood: $plan"; exit 1 ;;
esac
compose run --rm --no-deps -T fetch >/dev/null

if [ "$pending" = yes ] || [ "$stop" = yes ]; then
    if [ "$stop" = no ]; then
        say "refused: the store's schema changes, and replicas of the old version would go on writing the old one: $plan"
        say "make a backup, then \`sh docker/upgrade.sh --stop\`: clients get errors until the new version is ready"
        exit 3
    fi
    # shellcheck disable=SC2086
    compose stop $replicas
    compose run --rm --no-deps -T migrate
    # shellcheck disable=SC2086
    compose up -d --no-deps --no-build --wait --wait-timeout "$wait_seconds" $replicas
    say "done, after a stop"
    exit 0
fi

case "$replicas" in
    *[a-z0-9]*"
"*[a-z0-9]*) ;;
    *) say "refused: a single replica ($replicas) cannot be replaced without an outage; --stop accepts one"; exit 3 ;;
esac
for replica in $replicas; do
    say "$replica"
    if ! compose up -d --no-deps --no-build --wait --wait-timeout "$wait_seconds" "$replica"; then
        say "$replica did not become ready; the others serve. Its last lines:"
        compose logs --no-log-prefix --tail 20 "$replica" >&2 || true
        say "go back: name the old image in SERVICE_IMAGE (or tag it), then run this script again"
        exit 1
    fi
    sleep "$pause_seconds"
done
say "done"
