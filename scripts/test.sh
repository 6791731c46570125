#!/bin/sh
# Runs all tests that need no Kubernetes programs. As root it installs what they need, on Debian. Without root, tests
# that need network namespaces are skipped; REQUIRE_NETNS=1 makes that a failure.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
if [ "$(id -u)" -eq 0 ]; then
	scripts/deps.sh haproxy iptables ip nft strace
fi
# The tests read this variable, so that go test does not reuse results from another kernel, other programs or another user.
DETOUR_TEST_HOST=$(
	id -u
	uname -rv
	for program in iptables-nft iptables-legacy nft ip; do "$program" -V 2>&1 || :; done
)
export DETOUR_TEST_HOST
leaks=$(mktemp -d)
trap 'rm -rf "$leaks"' EXIT
go build -o "$leaks/" ./scripts/leaks # prints what go test would, and looks for credentials in all that the tests print
go test -json -timeout 30m ./... | "$leaks/leaks" # the default of ten minutes is short on a busy machine
