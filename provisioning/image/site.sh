#!/bin/sh
# Install the node into /opt/edge and write its bill of materials: site.sh WHEELHOUSE WHEELS EXTRAS FACTS
# Nothing in it depends on when or where this runs, so that the same wheelhouse gives the same image.
set -eu
wheelhouse=$1 wheels=$2 extras=$3 facts=$4
here=$(dirname "$(realpath "$0")")
export PYTHONHASHSEED=0

python3 -m venv --without-pip /opt/edge
pip="/build/tools/bin/pip --python /opt/edge/bin/python"
# shellcheck disable=SC2086  # several words on purpose
{
  $pip install --quiet --no-index --no-deps --no-compile --find-links "$wheelhouse" --require-hashes \
    --requirement "$wheelhouse/requirements.txt"
  # These two were built here: what they need has to be there already.
  for wheel in "$wheels"/llama_cpp_python-*.whl; do
    $pip install --quiet --no-index --no-deps --no-compile "$wheel"
  done
  for wheel in "$wheels"/edge_node-*.whl; do
    $pip install --quiet --no-index --no-compile "edge-node[$extras] @ file://$wheel"
  done
  $pip check
}
site=$(/opt/edge/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# CUDA's libraries come as packages, each in a directory of its own: one place for the loader (LD_LIBRARY_PATH of the image).
if [ -d "$site/nvidia" ]; then
  mkdir -p /opt/edge/lib/nvidia
  find "$site/nvidia" -name 'lib*.so*' -exec ln -s {} /opt/edge/lib/nvidia/ \;
fi
find "$site" -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
# By content, not by time: the root is read-only, and the files' times are those of the image.
/opt/edge/bin/python -m compileall -q -j 1 --invalidation-mode unchecked-hash "$site"
/build/tools/bin/python "$here/materials.py" --python /opt/edge/bin/python --facts "$facts" --native "$site/llama_cpp/lib" \
  --out /opt/edge/share/edge/sbom.cdx.json
