#!/usr/bin/env bash
# Fails if a program of detour calls a function with a known vulnerability. GOVULNDB names a copy of https://vuln.go.dev.
set -euo pipefail
cd "$(dirname "$0")/.."
"$(scripts/go-tool.sh govulncheck)" ${GOVULNDB:+"-db=$GOVULNDB"} ./plugin/...
