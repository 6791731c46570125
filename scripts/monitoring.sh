#!/usr/bin/env bash
# Holds the alerts and the dashboard of deploy/components/monitoring against promtool and a real agent's metrics. Needs root.
# Arguments go to go test.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/deps.sh ip iptables nft
PROMTOOL=$(scripts/go-tool.sh promtool)
export PROMTOOL
cd scripts/monitoring
go test -count=1 "$@" ./...
