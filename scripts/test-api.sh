#!/usr/bin/env bash
# Runs the plugin against a real kube-apiserver and etcd (pkg/apitest). Needs root, for network namespaces; arguments go to
# go test. REQUIRE_NETNS=1 makes a missing privilege a failure instead of a skipped test.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/deps.sh etcd ip iptables
folder=$(scripts/kube-programs.sh kube-apiserver kubectl)

# The servers' data, logs and keys: go test may be stopped before it can remove them.
TMPDIR=$(mktemp -d)
trap 'rm -rf "$TMPDIR"' EXIT
export TMPDIR
export DETOUR_KUBE_APISERVER=$folder/kube-apiserver
DETOUR_ETCD=$(command -v etcd)
export DETOUR_ETCD

go test -tags kubeapi -count=1 "$@" ./pkg/apitest/...
