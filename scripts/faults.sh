#!/bin/sh
# Kills the plugin at every system call of ADD, DEL and GC, and the agent at every file operation of installation, renewal and
# removal, and makes every such call fail. ROUNDS (1) repeats it, each time with
# other processes that die, other steps that follow and other errnos; 12 rounds have them all.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
if [ "$(id -u)" -eq 0 ]; then
	scripts/deps.sh iptables ip nft
fi
go test -count=1 -timeout 600m -tags faults ./pkg/cniplugin -run '^(TestKilledAtEveryCall|TestEveryCallFails)$' -v
exec go test -count=1 -timeout 600m -tags faults ./plugin/detour-agent -run '^(TestKilledAtEveryFileOperation|TestEveryFileOperationFails)$' -v
