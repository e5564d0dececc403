#!/bin/sh
# Fetches and converts what the shipped models need, and the sample videos: `fetch-weights.sh CACHE`.
set -eu
export VIDLEX_CACHE_DIR="$1"
PYTHONPATH=/fetch:$(/usr/local/bin/python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
export PYTHONPATH
/opt/vidlex/bin/python - <<'PYTHON'
from vidlex.model.weights.llm import fetch_llm
from vidlex.model.weights.sample_videos import fetch_sample_videos
from vidlex.model.weights.tower import fetch_tower

fetch_llm(progress=print)
fetch_tower(progress=print)
fetch_sample_videos(progress=print)
PYTHON
rm -f "$1"/*/.*.lock
# The choice of an encoder is measured where the service runs, and kept on the volume /cache.
ln -s /cache "$1/encoders"
