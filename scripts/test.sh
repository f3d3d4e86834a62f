#!/usr/bin/env bash
# Runs the tests; `scripts/test.sh -m slow` runs the longer proofs. The arguments are pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/venv.sh dev
exec .venv/bin/python -m pytest "$@"
