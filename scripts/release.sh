#!/usr/bin/env bash
# Builds a release into dist/ and checks it: sdists and wheels of both packages, the SBOM, the image. Publishes nothing.
# `scripts/release.sh --trial` does the same before there is anything to release: it only warns where the tree has changes or
# CHANGELOG.md does not have the version.
# Needs what install_smoke.sh needs; ENGINE and BASE_IMAGE are image.sh's. Without a container engine it makes no image.
set -euo pipefail
cd "$(dirname "$0")/.."
trial=
case ${1:-} in
--trial) trial=1 ;;
"") ;;
*)
    echo "usage: scripts/release.sh [--trial]" >&2
    exit 2
    ;;
esac
step() { printf '\n=== %s\n' "$*"; }
refuse() {
    if [[ $trial ]]; then
        echo "warning: $*" >&2
    else
        echo "no release: $*" >&2
        exit 1
    fi
}
version_in() { sed -n 's/^version = "\(.*\)"$/\1/p' "$1/pyproject.toml"; }

step "version"
version=$(version_in .)
[[ $(version_in client) == "$version" ]] || refuse "pyproject.toml says $version, client/pyproject.toml $(version_in client)"
newest=$(sed -n 's/^## \[\([0-9].*\)\].*/\1/p' CHANGELOG.md | head -1)
[[ $newest == "$version" ]] || refuse "the newest version of CHANGELOG.md is ${newest:-none}, and pyproject.toml says $version"
[[ -z $(git status --porcelain) ]] || refuse "there are changes that are not committed"
if git rev-parse --quiet --verify "refs/tags/v$version" >/dev/null; then refuse "the tag v$version exists already"; fi
echo "$version at $(git rev-parse --short HEAD)"

step "sdists and wheels"
scripts/venv.sh dev
rm -rf dist
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH # the same commit gives the same bytes
for package in . client; do
    # The wheel is built from the sdist, which so proves to be whole.
    .venv/bin/uv build --quiet --no-build-isolation --python .venv/bin/python --out-dir dist "$package"
done
expected="opservice-$version-py3-none-any.whl opservice-$version.tar.gz"
expected+=" opservice_client-$version-py3-none-any.whl opservice_client-$version.tar.gz"
made=$(cd dist && echo ./*.whl ./*.tar.gz | tr ' ' '\n' | sed 's|^\./||' | LC_ALL=C sort | paste -sd' ')
[[ $made == "$expected" ]] || { echo "dist/ has $made, not $expected" >&2 && exit 1; }
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
.venv/bin/python -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/release.txt
"$environment/bin/twine" check --strict dist/*

step "scripts/install_smoke.sh, of these wheels"
WHEELS=$PWD/dist scripts/install_smoke.sh

step "scripts/sbom.sh"
scripts/sbom.sh dist/sbom.json

step "image"
engine=${ENGINE:-$(docker info >/dev/null 2>&1 && echo docker || echo podman)}
if "$engine" info >/dev/null 2>&1; then
    ENGINE=$engine scripts/image.sh --tag "opservice:$version"
    ENGINE=$engine scripts/image_smoke.sh "opservice:$version"
    image="the image opservice:$version ($engine)"
else
    refuse "no container engine is there, so no image was made"
    image=
fi

step "done"
(cd dist && sha256sum -- * >SHA256SUMS && cat SHA256SUMS)
cat <<END
Built and checked: dist/${image:+, and $image}. Nothing was published. To publish $version:
  git tag -s v$version && git push origin v$version
  twine upload dist/*.whl dist/*.tar.gz
  push the image to your registry, and note the digest that the registry prints
  attach dist/sbom.json and dist/SHA256SUMS to the release
END
