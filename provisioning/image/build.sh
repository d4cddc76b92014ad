#!/bin/sh
# Build an image from this checkout and dist/wheelhouse: build.sh TARGET TAG [BUILDER'S OPTION...]
# TARGET: cpu, cuda, jetson. BUILDER: buildah, podman or docker; the first that is there. Options such as --build-arg
# BASE_IMAGE=... are handed on; EDGE_BUILD_OPTIONS too (in a container: --isolation=chroot).
set -eu
target=$1 tag=$2
shift 2
cd "$(dirname "$(realpath "$0")")/../.."

file=Dockerfile
[ "$target" != jetson ] || file=Dockerfile.jetson
for part in native tools run; do
  [ -f "dist/wheelhouse/$part/requirements.txt" ] || {
    echo "edge: dist/wheelhouse has no $part: run \`make wheelhouse\` first, where there is a network" >&2
    exit 1
  }
done
builder=${BUILDER:-}
for candidate in buildah podman docker; do
  [ -n "$builder" ] || ! command -v "$candidate" >/dev/null || builder=$candidate
done
# OCI's format: in Docker's, buildah writes the random host name of the build, and no two builds have one digest. OCI's has no
# health check; FORMAT=docker has. Times are those of 1970, so that the same content has the same digest.
# shellcheck disable=SC2086  # several words on purpose
case $builder in
buildah | podman)
  verb=build
  [ "$builder" = podman ] || verb=bud
  exec "$builder" "$verb" --layers --format "${FORMAT:-oci}" --timestamp 0 ${EDGE_BUILD_OPTIONS:-} \
    --file "$file" --target "$target" --tag "$tag" "$@" .
  ;;
docker)
  exec docker build --build-arg SOURCE_DATE_EPOCH=0 ${EDGE_BUILD_OPTIONS:-} \
    --file "$file" --target "$target" --tag "$tag" "$@" .
  ;;
*)
  echo "edge: there is no builder for images here: install one (Debian: apt install buildah), or name it in BUILDER" >&2
  exit 1
  ;;
esac
