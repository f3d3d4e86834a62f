#!/usr/bin/env bash
# Generates src/opservice/_proto/ from proto/, or, with an absolute path as argument, a copy there.
# With --check it changes nothing, and exits 1 when the checked-in code is not what proto/ gives.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ ${PYTHON:=.venv/bin/python} != .venv/bin/python || -x $PYTHON ]] || PYTHON=python3

scripts=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))') # protoc-gen-mypy is there
google=$("$PYTHON" -c 'import pathlib, google.rpc.status_pb2 as s; print(pathlib.Path(s.__file__).parents[2])')
mapfile -t protos < <(find proto -name '*.proto' | LC_ALL=C sort)
mapfile -t services < <(grep -l '^service ' "${protos[@]}")
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
new=$tmp/_proto && mkdir "$new"
protoc() { PATH="$scripts:$PATH" "$PYTHON" -m grpc_tools.protoc -Iproto -I"$google" "$@"; }
protoc --python_out="$new" --mypy_out=quiet:"$new" "${protos[@]}"
protoc --grpc_python_out="$new" --mypy_grpc_out=quiet:"$new" "${services[@]}"

# Re-root the Python imports: a second top-level `yandex` package would break the Yandex SDK.
find "$new" -name '*.py*' -exec sed -i -E \
    -e 's/^from (yandex|opservice)\b/from opservice._proto.\1/' \
    -e 's/\b(yandex|opservice)((\.[a-z0-9_]+)+_pb2)\b/opservice._proto.\1\2/g' {} +
find "$new" -type d -exec touch {}/__init__.py \;
echo '"""Generated from proto/ by scripts/gen_protos.sh; never edited."""' >"$new/__init__.py"

checked_in=src/opservice/_proto
case ${1:-} in
    --check)
        diff -ru --exclude=__pycache__ "$checked_in" "$new" ||
            { echo "$checked_in is not what proto/ gives: run scripts/gen_protos.sh" >&2; exit 1; } ;;
    /*) mkdir -p "$1" && cp -r "$new/." "$1" ;;
    "") rm -rf "$checked_in" && cp -r "$new" "$checked_in" ;;
    *) echo "usage: gen_protos.sh [--check | /ABSOLUTE/PATH]" >&2; exit 2 ;;
esac
