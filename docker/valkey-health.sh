#!/bin/sh
# Status 0 when the store answers. Without a password it may only say NOAUTH, which is an answer too.
set -eu
"${VALKEY_CLI:-valkey-cli}" -p "${VALKEY_PORT:-6379}" ping 2>&1 | grep -qE 'PONG|NOAUTH'
