#!/bin/sh
# Runs detour where it can't work. Kills the plugin at every system call of ADD, DEL and GC, and the agent at every file operation of
# installation, renewal and removal; makes every such call fail; runs both on hosts and disks that lack something or are broken.
# ROUNDS (1) repeats the calls, each time with other processes that die, other steps that follow and other errnos; 12 rounds have
# them all. FAULTS_STRIDE (1) is the least distance from one call that is struck to the next. Arguments go to go test.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
if [ "$(id -u)" -eq 0 ]; then
	scripts/deps.sh iptables ip nft
fi
if [ $# -eq 0 ]; then
	set -- -run '^Test(Hosts|Every(Call|FileOperation)Fails|KilledAtEvery(Call|FileOperation)|A(StateFolder|Record|Log|Credential|Disk)That.*)$' -v
fi
exec go test -count=1 -timeout 600m -tags faults ./pkg/cniplugin ./plugin/detour-agent "$@"
