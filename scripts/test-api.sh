#!/usr/bin/env bash
# Runs the plugin against a real kube-apiserver and etcd (pkg/apitest). Needs root for network namespaces; REQUIRE_NETNS=1 fails
# without it instead of skipping tests. Arguments go to go test.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/deps.sh etcd ip iptables nft nsenter runc
folder=$(scripts/kube-programs.sh kube-apiserver kubectl kube-proxy)

# The kinds of deploy/components/monitoring, as their project's module has them.
operator=$(go mod download -json github.com/prometheus-operator/prometheus-operator@v0.93.0 | sed -n 's/.*"Dir": "\(.*\)",/\1/p')
export DETOUR_MONITORING_KINDS=$operator/example/prometheus-operator-crd

# For the servers' data, logs and keys, which an interrupted go test can't remove.
TMPDIR=$(mktemp -d)
trap 'rm -rf "$TMPDIR"' EXIT
export TMPDIR
export DETOUR_KUBE_APISERVER=$folder/kube-apiserver
DETOUR_ETCD=$(command -v etcd)
export DETOUR_ETCD
DETOUR_HELM=$(scripts/go-tool.sh helm)
export DETOUR_HELM

go build -o "$TMPDIR/" ./scripts/leaks
# Most tests wait for the API server most of the time.
go test -json -tags kubeapi -count=1 -parallel 8 -timeout 20m "$@" ./pkg/apitest/... | "$TMPDIR/leaks"
