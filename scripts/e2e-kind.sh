#!/usr/bin/env bash
# Runs the cases of scripts/e2e on a kind cluster, except those that stop parts of the node or add another one. Arguments go to the
# tests. Needs docker and root. Builds kind and the pods' images itself.
#
# This script has not been run yet. Known from kind's sources only: the node's programs (bash, ctr, nsenter, iptables, nft, pgrep) and
# kindnet's configuration (CNI 0.3.1, ptp). kubectl is older than the API server by more versions than Kubernetes supports.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v docker >/dev/null; then
	echo "e2e-kind: docker is missing" >&2
	exit 1
fi
export PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
scripts/deps.sh busybox iptables
kind=$(scripts/go-tool.sh kind)
DETOUR_E2E_HELM=$(scripts/go-tool.sh helm)
DETOUR_E2E_PROGRAMS=$(scripts/kube-programs.sh kubectl)

work=$(mktemp -d "${TMPDIR:-/tmp}/detour-kind-XXXXXX")
name=detour-e2e-$$
node=$name-control-plane
finish() {
	local code=$?
	if ((code)); then
		echo "--- the ends of the node's logs"
		docker exec "$node" bash -c 'tail --lines 20 /var/log/detour*.log /var/log/pods/detour-system_*/*/*.log; journalctl --unit kubelet --lines 40'
	fi >&2
	"$kind" delete cluster --name "$name" >/dev/null 2>&1
	rm -rf "$work"
	exit "$code"
}
trap finish EXIT
"$kind" create cluster --name "$name" --config scripts/e2e/kind.yaml --kubeconfig "$work/kubeconfig" --wait 5m

mkdir "$work/bin"
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$work/bin/" ./plugin/... ./scripts/e2e/workload
DETOUR_E2E_BIN=$work/bin
DETOUR_E2E_KIND_NODE=$node
DETOUR_E2E_KUBECONFIG=$work/kubeconfig
export DETOUR_E2E_HELM DETOUR_E2E_PROGRAMS DETOUR_E2E_BIN DETOUR_E2E_KIND_NODE DETOUR_E2E_KUBECONFIG
go test -tags e2e -count=1 -v -timeout 60m "$@" ./scripts/e2e
