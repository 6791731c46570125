#!/bin/sh
# Runs all tests but those against a real API server. As root, what they need is installed; without root, or on another
# system, tests that need network namespaces are skipped, unless REQUIRE_NETNS=1 makes that a failure.
set -eu
cd "$(dirname "$0")/.."
if [ "$(id -u)" -eq 0 ]; then
	scripts/deps.sh iptables ip nft
fi
exec go test ./...
