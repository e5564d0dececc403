#!/bin/sh
# `pip check` of an environment without triton: only torch.compile needs that, and nothing here compiles.
set -eu
found=$(pip --python "$1/bin/python" check | grep -vE '^No broken requirements|^torch [^ ]+ requires triton, ' || true)
[ -z "$found" ] || { echo "$found" >&2; exit 1; }
