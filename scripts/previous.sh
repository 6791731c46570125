#!/bin/sh
# Builds earlier versions of detour for the tests of upgrades. Without arguments it prints the versions to upgrade from, the newest
# first: those in PREVIOUS (commits or tags), or else every release in HEAD's history, or before the first release the commit that the
# newest change of the product started from. With FOLDER VERSION it puts the version's files into the folder and its programs into bin/
# there.
set -eu
cd "$(dirname "$0")/.."

fail() {
	echo "previous.sh: $*" >&2
	exit 1
}

versions() {
	if [ -n "${PREVIOUS:-}" ]; then
		echo "$PREVIOUS" | tr -s ' ' '\n'
		return
	fi
	git rev-parse --quiet --verify HEAD^ >/dev/null ||
		fail "this clone does not have the version before: run git fetch --unshallow --tags, or name a commit in PREVIOUS"
	releases=$(git tag --merged HEAD^ --list 'v[0-9]*' --sort=-v:refname | grep -v -e - || :)
	if [ -n "$releases" ]; then
		printf '%s\n' "$releases"
		return
	fi
	change=$(git log -1 --first-parent --format=%H -- go.mod pkg plugin deploy \
		':!*_test.go' ':!*.md' ':!pkg/nettest' ':!pkg/testcase' ':!pkg/apitest' ':!pkg/agent/agenttest')
	git rev-parse --short --quiet --verify "$change^" ||
		fail "this clone does not have the commit before $change: run git fetch --unshallow, or name a commit in PREVIOUS"
}

if [ $# -eq 0 ]; then
	versions
	exit
fi
mkdir -p "$1"
git archive "$2" >"$1/previous.tar"
tar -x -f "$1/previous.tar" -C "$1"
rm "$1/previous.tar"
cd "$1"
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X github.com/detour-cni/detour/pkg/build.Version=$2" -o bin/ ./plugin/...
