#!/usr/bin/env bash
# Runs an image (`opservice`, or the one named) as a strict cluster would: read-only, without capabilities, not as root.
# Looks at it from outside: healthy, answering, stopped by SIGTERM with 0, still knowing its operations when started again,
# with workers that import nothing from /data.
# ENGINE is docker or podman. Needs grpcurl.
set -euo pipefail
image=${1:-opservice}
engine=${ENGINE:-$(docker info >/dev/null 2>&1 && echo docker || echo podman)}
# podman would have systemd run the health check, and there may be no systemd; `start` runs it.
export DISABLE_HC_SYSTEMD=true
container=
volume=$("$engine" volume create)
cleanup() {
    if [[ $container ]]; then "$engine" rm --force "$container" >/dev/null; fi
    "$engine" volume rm --force "$volume" >/dev/null
}
trap cleanup EXIT

fail() {
    echo "FAILED: $*" >&2
    if [[ $container ]]; then "$engine" logs "$container" >&2; fi
    exit 1
}
inside() { timeout 20 "$engine" exec "$container" "$@"; }
call() { timeout 20 grpcurl -plaintext "${@:2}" "$address" "$1"; }

# What docs/deploying.md says to run it with.
strict=(--read-only --cap-drop ALL --security-opt no-new-privileges --memory 2g --pids-limit 512)
# podman would lay file systems over /tmp and others that can be written to; docker does not.
if [[ ${engine##*/} == podman ]]; then strict+=(--read-only-tmpfs=false); fi
# Low enough for any machine; an engine's own defaults are not.
strict+=(--ulimit nofile=1024:1024 --ulimit nproc=1024:1024)

start() {
    container=$("$engine" run --detach "${strict[@]}" --volume "$volume:/data" --publish 127.0.0.1::50051 \
        --env OPSERVICE_ALLOW_ANONYMOUS=1 "$@" "$image")
    address=$("$engine" port "$container" 50051/tcp)
    local healthcheck
    read -ra healthcheck < <("$engine" inspect --format '{{join .Config.Healthcheck.Test " "}}' "$container")
    for _ in {1..60}; do
        if inside "${healthcheck[@]:1}" >/dev/null 2>&1; then return; fi
        sleep 0.5
    done
    fail "not healthy within 30 s"
}

stop() {
    timeout 60 "$engine" stop -t 30 "$container" >/dev/null
    local code
    code=$("$engine" inspect --format '{{.State.ExitCode}}' "$container")
    [[ $code == 0 ]] || fail "exit code $code after SIGTERM"
    "$engine" rm "$container" >/dev/null
    container=
}

refusal=$(timeout 60 "$engine" run --rm "${strict[@]}" "$image" 2>&1) && fail "serves everybody without being told to"
[[ $refusal == *"authentication is not configured"* ]] || fail "refused for another reason: $refusal"
start
echo "ready and healthy at $address"
[[ $(inside id -u) == 10001 ]] || fail "runs as user $(inside id -u)"
if timeout 20 "$engine" exec --user 0 "$container" touch /opt/probe 2>/dev/null; then
    fail "the root file system is writable"
fi
for python in $(inside find /opt/opservice/bin /usr/local/bin /usr/bin -name 'python3*' ! -name '*-config'); do
    for module in pip ensurepip setuptools; do
        if inside "$python" -m $module --version 2>/dev/null; then fail "$python -m $module works"; fi
    done
done
# Of /, what this user may look into.
left=$(inside find / -xdev \( -type f -perm /6000 -o -path '/opt/*' \( -name '*.pyi' -o -path '*/testing/*' \) \
    -o -iname pip -o -iname 'pip[!e]*' -o -name 'ensurepip*' -o -name setuptools -o -name 'setuptools-*' -o -name '*.whl' \) 2>/dev/null || true)
[[ -z $left ]] || fail "what is not needed is left in the image: $left"
# For the second start: whoever can write to /data must not have code of theirs run.
inside python -c 'open("/data/multiprocessing.py", "w").write("open(\"/data/imported\", \"w\"); raise ImportError")'
inside python -c 'import multiprocessing' || fail "Python imports from the working directory"
[[ $(call list) == *yandex.cloud.operation.OperationService* ]] || fail "reflection does not list OperationService"
get=yandex.cloud.operation.OperationService/Get
answer=$(call $get -d '{"operation_id": "opsunknown0000000000"}' 2>&1) && fail "an unknown operation was found"
[[ $answer == *'Code: NotFound'* ]] || fail "an unknown operation answered: $answer"
id=$(call opservice.v1.ProducerService/Start -d '{"description": "smoke"}' | sed -n 's/^ *"id": "\(.*\)",$/\1/p')
[[ $id ]] || fail "Start gave no operation"
stop
echo "stopped by SIGTERM with 0"
start --env OPSERVICE_WORKERS=2
[[ $(inside find /data -name multiprocessing.py -o -name imported) == /data/multiprocessing.py ]] || fail "a worker imports from /data"
[[ $(call $get -d "{\"operation_id\": \"$id\"}") == *'"description": "smoke"'* ]] || fail "operation $id did not survive"
stop
echo "operation $id survived a restart, with two workers"
