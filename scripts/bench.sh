#!/usr/bin/env bash
# Takes detour's numbers, each next to the least that could do the same, and prints them as a table in Markdown. Needs root;
# takes about two minutes. On a machine that is otherwise idle it is worth more.
set -euo pipefail
cd "$(dirname "$0")/.."

if ((EUID != 0)); then
	echo "bench: network namespaces need root: sudo make bench" >&2
	exit 1
fi

export PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
scripts/deps.sh iptables nft
scripts/build.sh ./plugin/detour ./scripts/bench/...

exec bin/bench
