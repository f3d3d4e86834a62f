#!/usr/bin/env bash
# Makes or updates .venv from the hashed lock: `scripts/venv.sh runtime` to serve, `scripts/venv.sh dev` to test too.
set -euo pipefail
cd "$(dirname "$0")/.."
group=${1:?usage: scripts/venv.sh runtime|dev}
python=${PYTHON:-python3}
# A venv that works keeps its Python, unless another one is asked for.
if [[ -z ${PYTHON:-} ]] && .venv/bin/python -c '' 2>/dev/null; then python=.venv/bin/python; fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "opservice needs Python 3.11 or later, and $python is not; set PYTHON=/path/to/python3" >&2
    exit 1
}

stamp() { cat "requirements/$1.txt" pyproject.toml client/pyproject.toml | cksum; }
if [[ $(.venv/bin/python -VV 2>/dev/null) == "$("$python" -VV)" ]]; then
    # dev holds all of runtime, so a dev venv serves as well, and is never cut down.
    for made in dev "$group"; do
        if [[ $(cat ".venv/$made.stamp" 2>/dev/null) == "$(stamp "$made")" ]]; then exit 0; fi
    done
else
    "$python" -m venv --clear .venv
fi
echo "Installing requirements/$group.txt into $PWD/.venv. This downloads packages and takes one to three minutes." >&2
rm -f .venv/*.stamp
.venv/bin/python -m pip install --quiet --require-hashes --requirement "requirements/$group.txt"
.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable client --editable .
stamp "$group" >".venv/$group.stamp"
echo "Installed. The next start will skip this." >&2
