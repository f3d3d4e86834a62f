#!/usr/bin/env bash
# Runs the tests and tells which branches they do not run, in the processes that they start too.
# The arguments are pytest's.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/venv.sh dev
.venv/bin/python -m pip install --quiet --require-hashes --requirement requirements/coverage.txt
rm -rf build/coverage && mkdir -p build/coverage
ended=0
.venv/bin/python -m coverage run -m pytest -n 2 "$@" || ended=$?
.venv/bin/python -m coverage combine --quiet
.venv/bin/python -m coverage report
exit "$ended"
