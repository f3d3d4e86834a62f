#!/usr/bin/env bash
# Generates the server's and the client's _proto/ from proto/, or, with an absolute path as argument, copies of both there.
# With --check it changes nothing, and exits 1 when the checked-in code is not what proto/ gives.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ ${PYTHON:=.venv/bin/python} != .venv/bin/python || -x $PYTHON ]] || PYTHON=python3

scripts=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))') # protoc-gen-mypy is there
google=$("$PYTHON" -c 'import pathlib, google.rpc.status_pb2 as s; print(pathlib.Path(s.__file__).parents[2])')
mapfile -t protos < <(find proto -name '*.proto' | LC_ALL=C sort)
mapfile -t services < <(grep -l '^service ' "${protos[@]}")
# The client's: what a producer says and hears. It makes its own stubs, because generated ones demand a new grpcio.
client_protos=(proto/opservice/v1/*.proto proto/yandex/cloud/operation/*.proto proto/yandex/cloud/validation.proto)
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
server=src/opservice/_proto client=client/src/opservice_client/_proto
mkdir -p "$tmp/$server" "$tmp/$client"
protoc() { PATH="$scripts:$PATH" "$PYTHON" -m grpc_tools.protoc -Iproto -I"$google" "$@"; }
protoc --python_out="$tmp/$server" --mypy_out=quiet:"$tmp/$server" "${protos[@]}"
protoc --grpc_python_out="$tmp/$server" --mypy_grpc_out=quiet:"$tmp/$server" "${services[@]}"
protoc --python_out="$tmp/$client" --mypy_out=quiet:"$tmp/$client" "${client_protos[@]}"

# Re-root the Python imports: a second top-level `yandex` package would break the Yandex SDK.
re_root() { # DIRECTORY PACKAGE
    find "$tmp/$1" -name '*.py*' -exec sed -i -E \
        -e "s/^from (yandex|opservice)\b/from $2.\1/" \
        -e "s/\b(yandex|opservice)((\.[a-z0-9_]+)+_pb2)\b/$2.\1\2/g" {} +
    find "$tmp/$1" -type d -exec touch {}/__init__.py \;
    echo '"""Generated from proto/ by scripts/gen_protos.sh; never edited."""' >"$tmp/$1/__init__.py"
}
re_root $server opservice._proto
re_root $client opservice_client._proto
# The client runs on protobuf 5 too, where generated code of protobuf 6 works and only its check of the version refuses;
# client/tests/test_installed.py runs it on each.
find "$tmp/$client" -name '*_pb2.py' -exec sed -i -e '/^_runtime_version\.Validate/,/^)$/d' -e '/ runtime_version as /d' {} +

case ${1:-} in
    --check)
        for each in $server $client; do
            diff -ru --exclude=__pycache__ "$each" "$tmp/$each" ||
                { echo "$each is not what proto/ gives: run scripts/gen_protos.sh" >&2; exit 1; }
        done ;;
    /*) mkdir -p "$1" && cp -r "$tmp/." "$1" ;;
    "") rm -rf $server $client && cp -r "$tmp/." . ;;
    *) echo "usage: gen_protos.sh [--check | /ABSOLUTE/PATH]" >&2; exit 2 ;;
esac
