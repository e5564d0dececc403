#!/bin/sh
# Select the packages of one image from requirements.lock on stdin: `packages.sh cuda`, `cpu` (no CUDA, no torch),
# `torch` (the two packages that the cpu image takes from PyTorch's own index) or `build` (what makes the wheel).
# HASHES=hashes.txt adds the digest of each package's wheel, and fails if one has none.
set -eu
torch='^(torch|torchvision)=='
cuda='^(nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)=='
# Only torch.compile needs triton (1 GB), and nothing here compiles.
triton='^triton=='
# Of the extra "train", which the images leave out.
training='^(absl-py|cloudpickle|contourpy|cycler|fonttools|google-crc32c|grpcio|joblib|kiwisolver|markdown|matplotlib|narwhals|pyparsing|resvg-py|scikit-learn|scipy|tensorboard|tensorboard-data-server|threadpoolctl|tzdata|werkzeug)=='
# python_full_version < "3.11.3" only; the images have Python 3.12.
older='^async-timeout=='
runtime() { sed '/^# --- development/,$d' | grep -E '^[a-z0-9]' | grep -vE "$training|$triton|$older"; }
with_hashes() {
    [ -n "${HASHES:-}" ] || { cat; return; }
    awk -v hashes="$HASHES" '
        BEGIN { while ((getline line < hashes) > 0) if (split(line, part, " ") == 2) digest[part[1]] = part[2] }
        !($1 in digest) { print "no digest of " $1 ": run docker/make-hashes.py" >"/dev/stderr"; exit 1 }
        { print $0 " --hash=" digest[$1] }'
}
case "$1" in
    cuda) runtime | with_hashes ;;
    cpu) runtime | grep -vE "$torch" | grep -vE "$cuda" | with_hashes ;;
    torch) runtime | grep -E "$torch" ;;
    build) runtime | grep -E '^setuptools==' | with_hashes ;;
    *) echo "usage: packages.sh cuda|cpu|torch|build" >&2; exit 2 ;;
esac
