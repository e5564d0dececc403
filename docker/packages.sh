#!/bin/sh
# Select the packages of one image from requirements.lock on stdin: `packages.sh cuda`, `cpu` (no CUDA, no torch) or
# `torch` (the two packages that the cpu image takes from PyTorch's own index).
set -eu
torch='^(torch|torchvision)=='
cuda='^(nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*|triton)=='
runtime() { sed '/^# --- development/,$d' | grep -E '^[a-z0-9]'; }
case "$1" in
    cuda) runtime ;;
    cpu) runtime | grep -vE "$torch" | grep -vE "$cuda" ;;
    torch) runtime | grep -E "$torch" ;;
    *) echo "usage: packages.sh cuda|cpu|torch" >&2; exit 2 ;;
esac
