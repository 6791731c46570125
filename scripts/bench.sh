#!/usr/bin/env bash
# Measures detour next to the least program that could do the same, prints a Markdown table and draws scripts/bench/plots. Needs
# root and about two minutes. The numbers are only comparable on an otherwise idle machine.
set -euo pipefail
cd "$(dirname "$0")/.."

if ((EUID != 0)); then
	echo "bench: network namespaces need root: sudo make bench" >&2
	exit 1
fi

export PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
scripts/deps.sh iptables nft
scripts/build.sh ./plugin/detour ./scripts/bench/...

# A node runs a copy, and a copy starts up to 0.7 ms faster than what the linker wrote.
for program in bin/*; do
	cp "$program" "$program.copy"
	mv "$program.copy" "$program"
done

exec bin/bench scripts/bench/plots
