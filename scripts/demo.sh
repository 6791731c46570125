#!/usr/bin/env bash
# Shows detour at work without a cluster: sets up a pod, a sidecar and an outside in network namespaces, makes real
# connections and compares where they go with where they should. MESH=... and BACKEND=... choose the mesh and the backend.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022 # the proxy runs the demo's binary as another user

if ((EUID != 0)); then
	echo "demo: network namespaces need root: sudo make demo" >&2
	exit 1
fi

export PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
scripts/deps.sh iptables
tools=$(scripts/tools.sh)
scripts/build.sh ./plugin/... ./scripts/demo

exec bin/demo -mesh "${MESH:-osm}" -backend "${BACKEND:-}" -tools "$tools" -plugins bin -manifests testdata/demo
