#!/usr/bin/env bash
# Runs the cases of scripts/e2e on a kind cluster, except those that stop parts of the node. Arguments go to the tests.
# Needs docker and kind; builds the pods' images itself.
set -euo pipefail
cd "$(dirname "$0")/.."

for program in docker kind; do
	if ! command -v "$program" >/dev/null; then
		echo "e2e-kind: $program is missing" >&2
		exit 1
	fi
done
scripts/deps.sh busybox iptables

work=$(mktemp -d "${TMPDIR:-/tmp}/detour-kind-XXXXXX")
name=detour-e2e-$$
trap 'kind delete cluster --name "$name" >/dev/null 2>&1; rm -rf "$work"' EXIT
cat >"$work/kind.yaml" <<-YAML
	kind: Cluster
	apiVersion: kind.x-k8s.io/v1alpha4
	networking: {ipFamily: dual}
	featureGates: {MutatingAdmissionPolicy: true}
	runtimeConfig: {admissionregistration.k8s.io/v1beta1: "true"}
YAML
kind create cluster --name "$name" --config "$work/kind.yaml" --kubeconfig "$work/kubeconfig" --wait 2m

mkdir "$work/bin"
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$work/bin/" ./plugin/... ./scripts/e2e/workload
programs=$(scripts/kube-programs.sh kubectl)
DETOUR_E2E_HELM=$(scripts/go-tool.sh helm)
export DETOUR_E2E_HELM
export DETOUR_E2E_BIN=$work/bin DETOUR_E2E_PROGRAMS=$programs
export DETOUR_E2E_KIND_NODE=$name-control-plane DETOUR_E2E_KUBECONFIG=$work/kubeconfig
go test -tags e2e -count=1 -v -timeout 60m "$@" ./scripts/e2e
