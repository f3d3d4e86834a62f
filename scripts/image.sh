#!/usr/bin/env bash
# Builds the image `opservice`. ENGINE is docker or podman; BASE_IMAGE, such as NAME:TAG or NAME@sha256:DIGEST, replaces the
# Dockerfile's; the arguments are `build`'s.
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${ENGINE:-$(docker info >/dev/null 2>&1 && echo docker || echo podman)}
base=${BASE_IMAGE:-$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)}
arguments=(
    --build-arg "BASE_IMAGE=$base"
    --label "org.opencontainers.image.base.name=${base%@*}"
    --build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)"
    --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)"
)
case $base in
*@*) arguments+=(--label "org.opencontainers.image.base.digest=${base##*@}") ;;
opservice-base | localhost/*) ;; # made on this machine
*)
    echo "warning: $base is a tag, and what it names may change. To build on the same image every time, run" >&2
    echo "'$engine pull $base' and '$engine image inspect --format \"{{index .RepoDigests 0}}\" $base'," >&2
    echo "and give what that prints as BASE_IMAGE." >&2
    ;;
esac
if [[ ${PIP_CERT:-} ]]; then arguments+=(--secret "id=ca,src=$PIP_CERT"); fi
# podman writes OCI images unless told otherwise, and those have no HEALTHCHECK.
BUILDAH_FORMAT=docker exec "$engine" build --tag opservice "${arguments[@]}" "$@" .
