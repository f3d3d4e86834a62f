#!/usr/bin/env bash
# Builds the documentation into build/site, and fails on any warning, such as a link to a page or a heading that is not there.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/venv.sh dev
lock=requirements/docs.txt
if [[ $(cat .venv/docs.stamp 2>/dev/null) != "$(cksum <$lock)" ]]; then
    echo "Installing $lock into $PWD/.venv." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement "$lock"
    cksum <"$lock" >.venv/docs.stamp
fi
.venv/bin/python scripts/reference.py
rm -rf build/site
.venv/bin/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env -c docs . build/site
# The root of the site is the repository's, and its first page is docs/index.
echo '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>opservice</title>' >build/site/index.html
echo "The documentation is in build/site/index.html."
