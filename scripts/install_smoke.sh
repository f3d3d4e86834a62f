#!/usr/bin/env bash
# Builds the wheels of opservice and opservice-client and installs them without the lock, as a user's `pip install` does. Serves
# from them, and starts, gets and cancels an operation. WHEELS=DIRECTORY takes the wheels that are there. Needs grpcurl.
# It does so on the oldest and the newest Python that it finds, or on those named: `scripts/install_smoke.sh python3.12`.
set -euo pipefail
cd "$(dirname "$0")/.."
made=$(mktemp -d)
server=
cleanup() {
    if [[ $server ]]; then kill -KILL "$server" 2>/dev/null || true; fi
    rm -rf "$made"
}
trap cleanup EXIT

fail() {
    echo "FAILED: $*" >&2
    cat "$made"/log >&2 2>/dev/null || true
    exit 1
}
version() { "$1" -c 'import sys, venv; assert sys.version_info >= (3, 11); print("%d.%02d" % sys.version_info[:2])' 2>/dev/null; }
find_pythons() {
    local found each
    for each in python3 python3.{11..20} /usr/bin/python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3; do
        if found=$(version "$each"); then echo "$found $each"; fi
    done | sort -s -k1,1 -u
}
call() { timeout 20 grpcurl -plaintext -d "$2" "127.0.0.1:$port" "$1"; }

try() { # PYTHON [OPTION OF serve]…
    local python=$1 id
    echo "$("$python" --version): opservice serve ${*:2}"
    : >"$made/out" # so that it is there, and says nothing of the server before
    (cd "$made" && exec env/bin/opservice serve --listen 127.0.0.1:0 --http-listen 127.0.0.1:0 --database "sqlite:///$made/try.db" "${@:2}") >"$made/out" 2>"$made/log" &
    server=$!
    for _ in {1..300}; do
        port=$(sed -n 's/^opservice .* serving on 127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$made/out")
        if [[ $port ]]; then break; fi
        kill -0 "$server" 2>/dev/null || fail "it does not start"
        sleep 0.1
    done
    [[ $port ]] || fail "it is not ready within 30 s"
    id=$(call opservice.v1.ProducerService/Start '{"description": "installed"}' | sed -n 's/^ *"id": "\(.*\)",$/\1/p')
    [[ $id ]] || fail "Start gave no operation"
    [[ $(call yandex.cloud.operation.OperationService/Get "{\"operation_id\": \"$id\"}") == *'"description": "installed"'* ]] || fail "Get of $id"
    [[ $(call yandex.cloud.operation.OperationService/Cancel "{\"operation_id\": \"$id\"}") == *'"done": true'* ]] || fail "Cancel of $id"
    call grpc.health.v1.Health/Check '{}' >/dev/null || fail "Health/Check"
    kill -TERM "$server"
    wait "$server" || fail "exit code $? after SIGTERM"
    server=
}

builder=$(find_pythons | head -1 | cut -d' ' -f2)
[[ $builder ]] || fail "no Python 3.11 or later is found"
wheels=${WHEELS:-$made}
if [[ ! ${WHEELS:-} ]]; then
    "$builder" -m venv "$made/build"
    "$made/build/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$wheels" . ./client
fi
pythons=("$@")
if ((!$#)); then mapfile -t pythons < <(find_pythons | sed -n '1p;$p' | cut -d' ' -f2 | uniq); fi
for python in "${pythons[@]}"; do
    "$python" -m venv --clear "$made/env"
    "$made/env/bin/python" -m pip install --quiet --disable-pip-version-check "$wheels"/opservice*.whl
    try "$python"
    try "$python" --workers 2
    "$made/env/bin/python" -m pip list --format freeze --disable-pip-version-check | grep -iE '^(grpcio|protobuf|sqlalchemy)' | paste -sd' '
done
