#!/bin/sh
# Runs every fuzz target for FUZZTIME, one after the other, and holds the tracer against the kernel.
set -eu
cd "$(dirname "$0")/.."
git grep -o -E '^func Fuzz[A-Za-z]+' -- '*_test.go' | while IFS=: read -r file found; do
	go test "./$(dirname "$file")" -run '^$' -fuzz "^${found#func }\$" -fuzztime "${FUZZTIME:-10s}"
done
DETOUR_TRACE_SEED="${DETOUR_TRACE_SEED:-0}" DETOUR_TRACE_PAIRS="${DETOUR_TRACE_PAIRS:-10000}" scripts/trace-judge.sh
