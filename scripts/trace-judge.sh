#!/bin/sh
# Holds the tracer against the kernel, by DETOUR_TRACE_PAIRS (2000) random packets through random rulesets. They begin with
# DETOUR_TRACE_SEED (1); 0 is a random seed, which is printed.
set -eu
cd "$(dirname "$0")/.."
export DETOUR_TRACE_PAIRS="${DETOUR_TRACE_PAIRS:-2000}"
PATH=$PATH:/usr/sbin:/sbin
if [ "$(id -u)" -eq 0 ]; then
	scripts/deps.sh iptables ip nft
fi
exec go test -count=1 -timeout 60m ./pkg/trace -run '^TestTheKernelAgreesWithTheTracer$' -v
