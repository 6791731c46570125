#!/bin/sh
# Runs all tests but those against a real API server. As root, what they need is installed; without root, or on another
# system, tests that need network namespaces are skipped, unless REQUIRE_NETNS=1 makes that a failure.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
if [ "$(id -u)" -eq 0 ]; then
	scripts/deps.sh haproxy iptables ip nft strace
fi
# The tests read the variable, so that the cache of go test keeps no result from another kernel, other programs or a user
# without privileges.
DETOUR_TEST_HOST=$(
	id -u
	uname -rv
	for program in iptables-nft iptables-legacy nft ip; do "$program" -V 2>&1 || :; done
)
export DETOUR_TEST_HOST
exec go test -timeout 30m ./... # on a busy machine the default of ten minutes is short
