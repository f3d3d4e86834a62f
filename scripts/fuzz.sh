#!/usr/bin/env bash
# Fuzzes each target of fuzz/targets.py for so many seconds: `scripts/fuzz.sh 60`, or the one named: `scripts/fuzz.sh 60 filters`.
# What makes one fail it leaves in fuzz/found. Needs the group fuzz: .venv/bin/pip install -r requirements/fuzz.txt
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python targets=$PWD/fuzz/targets.py
read -ra named <<<"${2:-$("$python" "$targets" 2>/dev/null)}"
mkdir -p fuzz/found && cd fuzz/found
for target in "${named[@]:?no target: is atheris installed?}"; do
    echo "fuzzing $target for ${1:?usage: scripts/fuzz.sh SECONDS [TARGET]} s"
    "$python" "$targets" "$target" -max_total_time="$1" -timeout=10 -rss_limit_mb=1024 -max_len=8192 -verbosity=0
done
