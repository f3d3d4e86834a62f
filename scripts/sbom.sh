#!/usr/bin/env bash
# Writes sbom.json, or the file named: a CycloneDX list of what requirements/runtime.txt installs on this platform, with
# licences and what needs what. The same input gives the same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
for each in sbom runtime; do
    "${PYTHON:-python3}" -m venv "$made/$each"
    "$made/$each/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "requirements/$each.txt"
done
"$made/runtime/bin/python" -m pip uninstall --quiet --yes setuptools pip # nor does the image have them
"$made/sbom/bin/cyclonedx-py" environment --pyproject pyproject.toml --mc-type application --output-reproducible \
    --output-format JSON --output-file "${1:-sbom.json}" "$made/runtime/bin/python"
