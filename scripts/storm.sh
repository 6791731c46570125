#!/bin/sh
# Starts PODS (250) pods at once, with each backend, and CYCLES (400) pods one after the other, in network namespaces; prints how long it
# took and what is left. Needs root. Arguments go to go test.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
if [ "$(id -u)" -eq 0 ]; then
	scripts/deps.sh iptables ip nft
fi
exec go test -tags storm -count=1 -timeout 180m -v "$@" ./scripts/storm
