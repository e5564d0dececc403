#!/bin/sh
# Makes the files of a layer readable by every user, small, and equal from build to build: `finish-layer.sh FOLDER`.
set -eu
folder=$1
for packages in "$folder"/lib/python3.*/site-packages "$folder"/opt/vidlex/lib/python3.*/site-packages; do
    [ -d "$packages" ] || continue
    # Headers, link libraries and tests: nothing is compiled or tested in the image.
    rm -rf "$packages"/torch/include "$packages"/torch/share "$packages"/nvidia/*/include "$packages"/nvidia/*/*/include
    find "$packages" -name '*.a' -delete
    for package in numpy sympy networkx mpmath faiss; do
        [ ! -d "$packages/$package" ] || find "$packages/$package" -type d -name tests -prune -exec rm -rf {} +
    done
    # Compiled once, without times in it: the file system is read-only when the service starts.
    python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$packages" || true  # some are templates
done
chmod -R a+rX,go-w "$folder"
find "$folder" -exec touch -h -d @0 {} +
