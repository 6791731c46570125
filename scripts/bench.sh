#!/usr/bin/env bash
# Measures detour next to the least that could do the same: prints a table in Markdown and draws scripts/bench/plots. Needs
# root and about two minutes. The figures are worth more on an idle machine.
set -euo pipefail
cd "$(dirname "$0")/.."

if ((EUID != 0)); then
	echo "bench: network namespaces need root: sudo make bench" >&2
	exit 1
fi

export PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
scripts/deps.sh iptables nft
scripts/build.sh ./plugin/detour ./scripts/bench/...

exec bin/bench scripts/bench/plots
