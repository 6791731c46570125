#!/usr/bin/env bash
# Measures what the agents of many nodes cost the API server, and prints a table. AGENTS (100) and PODS (30, a node) say how many,
# REST how many seconds nothing happens (30). Needs root, 24 MB of memory an agent, and an otherwise idle machine.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/deps.sh etcd
folder=$(scripts/kube-programs.sh kube-apiserver kubectl)

# In memory: a disk that is slow to sync would make all else slow. For the servers' data and keys, which an interrupted go test
# can't remove.
TMPDIR=$(mktemp -d -p /dev/shm)
trap 'rm -rf "$TMPDIR"' EXIT
export TMPDIR
export DETOUR_KUBE_APISERVER=$folder/kube-apiserver
DETOUR_ETCD=${DETOUR_ETCD:-$(command -v etcd)}
export DETOUR_ETCD

go test -tags 'kubeapi scale' -count=1 -timeout 3h -run '^TestScale$' "$@" ./pkg/apitest
