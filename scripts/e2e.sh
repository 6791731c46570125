#!/usr/bin/env bash
# Runs detour on a real Kubernetes node made of namespaces, then stops the node. Needs root. Arguments go to the tests, such as
# -run NAME. The first run builds the Kubernetes programs, which takes minutes. KEEP=1 keeps disks and logs. CONTAINERD=2 takes
# containerd 2, built from its Go module, instead of the installed one.
set -euo pipefail
cd "$(dirname "$0")/.."

if ((EUID != 0)); then
	echo "e2e: a node needs root: sudo make e2e" >&2
	exit 1
fi

export PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
scripts/deps.sh containerd runc etcd busybox iptables nft ip nsenter
DETOUR_E2E_PROGRAMS=$(scripts/kube-programs.sh kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl kubelet)
DETOUR_E2E_HELM=$(scripts/go-tool.sh helm)
export DETOUR_E2E_HELM
tools=$(scripts/tools.sh)
found=(flanneld)
if [[ ${CONTAINERD:-} == 2 ]]; then found+=(containerd containerd-shim-runc-v2); fi
for program in "${found[@]}"; do
	built=$(scripts/go-tool.sh "$program")
	PATH=$(dirname "$built"):$PATH
done

work=$(mktemp -d "${TMPDIR:-/tmp}/detour-e2e-XXXXXX")

# show_logs prints the ends of the nodes' logs and of detour's.
show_logs() {
	local log
	for log in "$work"/cluster/logs/*/{containerd,flanneld,kubelet}.log "$work"/cluster/node/var/log/{detour*.log,pods/detour-system_*/*/*.log}; do
		if [[ -s $log ]]; then
			echo "--- the end of ${log#"$work"/cluster/}"
			tail --lines 20 "$log"
		fi
	done
}

finish() {
	local code=$?
	if ((code)); then show_logs >&2; fi
	if [[ ${KEEP:-} == 1 ]]; then echo "e2e: kept $work" >&2; else rm -rf "$work"; fi
	exit "$code"
}
trap finish EXIT
DETOUR_E2E_WORK=$work/cluster
DETOUR_E2E_PLUGINS=$work/plugins
DETOUR_E2E_BIN=$work/bin
export DETOUR_E2E_PROGRAMS DETOUR_E2E_WORK DETOUR_E2E_PLUGINS DETOUR_E2E_BIN
mkdir "$DETOUR_E2E_WORK" "$DETOUR_E2E_PLUGINS" "$DETOUR_E2E_BIN" "$work/module"

# build FOLDER PACKAGE...: static programs. go.mod lacks the modules of the two CNI plugins that are not among its tools.
cp go.mod go.sum "$work/module"
build() {
	CGO_ENABLED=0 go build -modfile="$work/module/go.mod" -mod=mod -trimpath -buildvcs=false -ldflags "-s -w" -o "$1/" "${@:2}"
}
plugins=github.com/containernetworking/plugins/plugins
cp "$tools/bridge" "$tools/host-local" "$DETOUR_E2E_PLUGINS"
build "$DETOUR_E2E_PLUGINS" $plugins/main/loopback $plugins/meta/portmap
build "$DETOUR_E2E_BIN" ./plugin/... ./scripts/e2e/workload
go test -tags e2e -c -o "$work/e2e.test" ./scripts/e2e
go build -o "$work/leaks" ./scripts/leaks

cd scripts/e2e # where go test would run it
"$work/e2e.test" -test.v -test.failfast -test.timeout 60m "${@/#-/-test.}" | tee "$work/output"

# No credential may be in what the tests printed, nor in what is left of detour's and the pods' logs.
"$work/leaks" "$work/output" "$DETOUR_E2E_WORK/node/var/log"
