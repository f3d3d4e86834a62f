#!/usr/bin/env bash
# Makes the image `opservice-base` from Debian's packages, for a machine that reaches no image registry:
# `scripts/base_image.sh && BASE_IMAGE=opservice-base scripts/image.sh`. Needs root and debootstrap.
set -euo pipefail
engine=${ENGINE:-$(docker info >/dev/null 2>&1 && echo docker || echo podman)}
if "$engine" image inspect opservice-base >/dev/null 2>&1; then exit 0; fi
root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root"
tar -C "$root" --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' -c . | "$engine" import - opservice-base
