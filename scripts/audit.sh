#!/usr/bin/env bash
# Looks for known vulnerabilities in what requirements/*.txt lock, in OSV's database: `scripts/audit.sh`, over the network, or
# `scripts/audit.sh DIRECTORY`, which asks nobody and reads DIRECTORY/osv-scanner/PyPI/all.zip. docs/vulnerabilities.md says
# where that is from. Exits with 0 when there are none, 1 when there are, and 2 when nobody knows. Needs osv-scanner.
set -euo pipefail
version=2.4.0
unknown() {
    echo "not audited: $*" >&2
    exit 2
}
arguments=()
if (($#)); then
    database=$1/osv-scanner/PyPI/all.zip
    [[ -f $database ]] || unknown "there is no $database"
    OSV_SCANNER_LOCAL_DB_CACHE_DIRECTORY=$(realpath "$1")
    export OSV_SCANNER_LOCAL_DB_CACHE_DIRECTORY
    arguments+=(--offline)
    echo "with the database of $(date --iso-8601 --reference "$database")"
fi
cd "$(dirname "$0")/.."
[[ $(osv-scanner --version 2>/dev/null | head -1) == "osv-scanner version: $version" ]] ||
    unknown "osv-scanner $version is needed: go install github.com/google/osv-scanner/v2/cmd/osv-scanner@v$version"
for each in requirements/*.txt; do arguments+=(--lockfile "requirements.txt:$each"); done
code=0
osv-scanner scan source --no-resolve --verbosity warn "${arguments[@]}" || code=$?
# Beyond 1 are failures, such as a database that cannot be reached or read, whatever was printed of vulnerabilities.
((code <= 1)) || unknown "osv-scanner failed with $code; see above"
exit $code
