#!/usr/bin/env bash
# Serves from this checkout: `scripts/serve.sh --demo`. The arguments are those of `opservice serve`.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/venv.sh runtime
exec .venv/bin/opservice serve "$@"
