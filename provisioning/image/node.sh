#!/bin/sh
# Build the node's own wheel: node.sh TOOLS SOURCE DESTINATION. The tools stay in /build/tools; the bill of materials needs them too.
set -eu
tools=$1 source=$2 destination=$3
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}" PYTHONHASHSEED=0

python3 -m venv /build/tools
/build/tools/bin/pip install --quiet --no-index --no-deps --no-compile --find-links "$tools" --require-hashes \
  --requirement "$tools/requirements.txt"
mkdir -p "$destination"
/build/tools/bin/pip wheel --quiet --no-index --no-deps --no-build-isolation --no-cache-dir \
  --wheel-dir "$destination" "$source"
