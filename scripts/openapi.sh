#!/usr/bin/env bash
# Has schemathesis call a server by what its /openapi.json says, with all checks, for about a minute. Exits 1 when it finds a
# fault of the server or of the document. Arguments are those of `schemathesis run`: `scripts/openapi.sh --phases coverage`.
# SCHEMATHESIS=PATH is one that is installed already.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/venv.sh dev
made=$(mktemp -d)
server=
cleanup() {
    if [[ $server ]]; then kill -TERM "$server" 2>/dev/null || true; wait "$server" || true; fi
    rm -rf "$made"
}
trap cleanup EXIT

tool=${SCHEMATHESIS:-$made/env/bin/schemathesis}
if [[ ! ${SCHEMATHESIS:-} ]]; then
    .venv/bin/python -m venv "$made/env"
    "$made/env/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/openapi.txt
fi

# With credentials, so that it is seen that they are needed; and so that waits are short.
.venv/bin/opservice token --subject tester --grant 'admin:*' >"$made/tokens.yaml" 2>"$made/said"
TOKEN=$(sed 's/.*: //' "$made/said")
export TOKEN
: >"$made/out" # so that it is there
.venv/bin/opservice serve --listen 127.0.0.1:0 --http-listen 127.0.0.1:0 --database "sqlite:///$made/try.db" \
    --tokens "$made/tokens.yaml" --max-wait 100ms >"$made/out" 2>"$made/log" &
server=$!
url=
for _ in {1..300}; do
    url=$(sed -n 's|.*, \(http://127\.0\.0\.1:[0-9]*\)$|\1|p' "$made/out")
    if [[ $url ]]; then break; fi
    kill -0 "$server" 2>/dev/null || { cat "$made/log" >&2; exit 1; }
    sleep 0.1
done
[[ $url ]] || { echo "the server is not ready within 30 s" >&2; exit 1; }

"$tool" --config-file scripts/openapi.toml run "$url/openapi.json" "$@"
if grep '"level": *"error"' "$made/log"; then echo "the server has logged errors" >&2; exit 1; fi
