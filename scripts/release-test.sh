#!/usr/bin/env bash
# Makes a release in two clones of HEAD that differ in what must not matter: folder, umask, TMPDIR, time zone, the files' times, Go's
# settings, and where the version comes from. All files must be the same; scripts/release looks into them. The clones share Go's
# build cache: its keys hold all that the compiler reads, so another folder or setting that mattered would miss it. Programs are
# linked, and everything else is made, twice.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/local/go/bin

if [[ -n $(git status --porcelain) ]]; then
	echo "release-test: what is not committed is not tested" >&2
fi
version=$(sed -n 's/^ *newTag: //p' deploy/base/kustomization.yaml)
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
git clone --quiet . "$work/one"
VERSION=$version make --silent -C "$work/one" release

(
	umask 077
	mkdir -p "$work/temporary" "$work/elsewhere/is the other"
	cd "$work/elsewhere/is the other"
	git clone --quiet "$work/one" .
	git tag --force "$version" >/dev/null
	git ls-files -z | TZ=UTC xargs --null touch --date=2001-02-03
	unset VERSION
	export TMPDIR=$work/temporary TZ=Asia/Kathmandu GOFLAGS='-tags=other -buildvcs=true' GOAMD64=v3 GODEBUG=http2client=0
	make --silent release
)
diff --recursive "$work/one/dist" "$work/elsewhere/is the other/dist"
(cd "$work/one/dist" && sha256sum --check --quiet --strict SHA256SUMS)
DETOUR_RELEASE=$work/one go test -tags release -count=1 ./scripts/release/
