#!/bin/sh
# Kills the plugin at every system call of ADD, DEL and GC, and makes every system call fail. ROUNDS (1) repeats it, each time with
# other processes that die, other steps that follow and other errnos; 12 rounds have them all. FAULTS_STRIDE (1) is the least
# distance from one call that is struck to the next.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
if [ "$(id -u)" -eq 0 ]; then
	scripts/deps.sh iptables ip nft
fi
exec go test -count=1 -timeout 600m -tags faults ./pkg/cniplugin -run '^(TestKilledAtEveryCall|TestEveryCallFails)$' -v
