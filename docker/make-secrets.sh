#!/bin/sh
# Makes the secrets of docker-compose.yml in docker/secrets (or the folder named), once; never overwrites any.
# api_keys, which the service reads, holds hashes; admin_key and metrics_key are the keys themselves.
set -eu
umask 077
here=$(dirname "$0")
folder=${1:-$here/secrets}
mkdir -p "$folder"
random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
hashed() { printf '%s_%s_sha256:%s' vdx "$1" "$(printf %s "$2" | sha256sum | cut -d' ' -f1)"; }
for name in redis_password grafana_password; do
    [ -e "$folder/$name" ] || random 32 >"$folder/$name"
done
if [ ! -e "$folder/api_keys" ]; then
    admin_id=$(random 6) metrics_id=$(random 6)
    admin="vdx_${admin_id}_$(random 32)" metrics="vdx_${metrics_id}_$(random 32)"
    printf %s "$admin" >"$folder/admin_key"
    printf %s "$metrics" >"$folder/metrics_key"
    printf '%s scope=admin name=first\n%s scope=read name=prometheus\n' \
        "$(hashed "$admin_id" "$admin")" "$(hashed "$metrics_id" "$metrics")" >"$folder/api_keys"
fi
# Containers of other users read these through bind mounts; the folder itself is closed to others here.
chmod 644 "$folder"/*
# So that they can read the mounted configuration where the checkout was made under a closed umask as well.
chmod a+r "$here"/Caddyfile "$here"/valkey* && chmod -R a+rX "$here"/prometheus "$here"/alertmanager "$here"/grafana
