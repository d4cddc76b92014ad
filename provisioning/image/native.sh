#!/bin/sh
# Build the native wheel from its source distribution, without a network: native.sh WHEELHOUSE DESTINATION [CMAKE OPTION...]
# WHEELHOUSE is what `make wheelhouse` calls `native`. Paths are fixed, since ggml keeps the names of its source files: the same
# sources and compiler give the same bytes. A wheel that was built before, for this kind of machine, is taken as it is: put it there.
set -eu
wheelhouse=$(realpath "$1") destination=$2
shift 2
here=$(dirname "$(realpath "$0")")
work=${EDGE_BUILD_DIR:-/build/native}

for built in "$wheelhouse"/llama_cpp_python-*-linux_"$(uname -m)".whl; do
  if [ -f "$built" ]; then
    echo "taking $(basename "$built"), which was built before"
    mkdir -p "$destination"
    cp "$built" "$destination"
    exit 0
  fi
done

rm -rf "$work"
mkdir -p "$work/source" "$destination"
python3 -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet --no-index --no-deps --no-compile --find-links "$wheelhouse" --require-hashes \
  --requirement "$wheelhouse/requirements.txt"
set -- "-DCMAKE_PROJECT_llama_cpp_INCLUDE=$here/../native/portable.cmake" -DLLAVA_BUILD=OFF "$@"
(
  cd "$wheelhouse"
  sha256sum --check --quiet sources.sha256
)
tar -xzf "$wheelhouse"/llama_cpp_python-*.tar.gz --strip-components=1 -C "$work/source"
# For those who compile against the library; llama.pc names the directory that this was built in, which is another one each time.
unused="llama_cpp/include;llama_cpp/lib/cmake;llama_cpp/lib/pkgconfig"
export PATH="$work/tools/bin:$PATH"
export CMAKE_ARGS="$*"
export CFLAGS="-ffile-prefix-map=$work=." CXXFLAGS="-ffile-prefix-map=$work=."
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}" PYTHONHASHSEED=0
"$work/tools/bin/pip" wheel --verbose --no-index --no-deps --no-build-isolation --no-cache-dir \
  --config-settings "build-dir=$work/out" --config-settings "wheel.exclude=$unused" --wheel-dir "$destination" "$work/source" >"$work/build.log" 2>&1 || {
  tail -n 60 "$work/build.log" >&2
  exit 1
}
