#!/usr/bin/env bash
# Builds the image `opservice`. ENGINE is docker or podman; BASE_IMAGE replaces the Dockerfile's; the arguments are `build`'s.
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${ENGINE:-$(docker info >/dev/null 2>&1 && echo docker || echo podman)}
arguments=(
    --build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)"
    --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)"
)
if [[ ${BASE_IMAGE:-} ]]; then arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE"); fi
if [[ ${PIP_CERT:-} ]]; then arguments+=(--secret "id=ca,src=$PIP_CERT"); fi
# podman writes OCI images unless told otherwise, and those have no HEALTHCHECK.
BUILDAH_FORMAT=docker exec "$engine" build --tag opservice "${arguments[@]}" "$@" .
