#!/bin/sh
# Starts the label store with one user, whose password comes from a secret file and is kept as a hash alone.
# The user reads and writes vidlex's keys: no scripts, no configuration, no modules, nothing @dangerous.
set -eu
conf=${VALKEY_CONF:-/etc/valkey/valkey.conf}
acl=${VALKEY_ACL:-/tmp/users.acl}
digest=$(tr -d '\r\n' <"${VALKEY_PASSWORD_FILE:-/run/secrets/redis_password}" | sha256sum | cut -d' ' -f1)
umask 077
cat >"$acl" <<RULES
user default off sanitize-payload resetchannels -@all
user vidlex on sanitize-payload #$digest resetchannels ~vidlex* -@all +@read +@write +@transaction +@connection +info -@scripting -@admin -@dangerous +info +time
RULES
exec "${VALKEY_SERVER:-valkey-server}" "$conf" --aclfile "$acl" --dir "${VALKEY_DIR:-/data}" \
    --bind "${VALKEY_BIND:-*}" --port "${VALKEY_PORT:-6379}" --maxmemory "${VALKEY_MAXMEMORY:-1gb}"
