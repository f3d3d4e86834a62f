#!/usr/bin/env bash
# Serves from this checkout: `scripts/serve.sh --demo`. The arguments are those of `opservice serve`.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/venv.sh runtime
cat >&2 <<END
The command is $PWD/.venv/bin/opservice. To call it from another terminal:
  export PATH="$PWD/.venv/bin:\$PATH"
  opservice list --all-parents
The server starts now, and runs until Ctrl-C.
END
exec .venv/bin/opservice serve "$@"
