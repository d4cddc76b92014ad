#!/bin/sh
# See that this stage has a Python that is new enough, with venv and pip, and fetch one where a network and apt can. CUDA's and
# Jetson's images come without: PYTHON_PACKAGE names the distribution's package (python3, or python3.11 on Ubuntu 22.04).
set -eu
package=${PYTHON_PACKAGE:-python3}
with=${1:-venv}
enough() {
  "$package" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || return 1
  [ "$with" = run ] || "$package" -c 'import ensurepip' 2>/dev/null
}

if ! enough; then
  needed=$package
  [ "$with" = run ] || needed="$package $package-venv"
  echo "edge: no Python 3.11 or newer in this image yet, fetching $needed" >&2
  # shellcheck disable=SC2086  # several words on purpose
  if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $needed; }; then
    echo "edge: $needed cannot be fetched. Without a network, give a base image that has them (docs/install/container.md)" >&2
    exit 1
  fi
  rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log
fi
enough || {
  echo "edge: $package of this image is older than 3.11: name a newer one with --build-arg PYTHON_PACKAGE=python3.N" >&2
  exit 1
}
path=$(command -v "$package")
if [ "$package" != python3 ] && ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  ln -sf "$path" /usr/local/bin/python3
fi
