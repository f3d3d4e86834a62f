#!/usr/bin/env bash
# Everything that reads the code without running it: lint, format, types, layers, generated code.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/venv.sh dev
export PATH="$PWD/.venv/bin:$PATH"
set -x
ruff check
ruff format --check
mypy
lint-imports
scripts/gen_protos.sh --check
python scripts/openapi_doc.py --check
