#!/bin/sh
# Runs every fuzz target for FUZZTIME, one after the other.
set -eu
cd "$(dirname "$0")/.."
git grep -o -E '^func Fuzz[A-Za-z]+' -- '*_test.go' | while IFS=: read -r file found; do
	go test "./$(dirname "$file")" -run '^$' -fuzz "^${found#func }\$" -fuzztime "${FUZZTIME:-10s}"
done
