#!/usr/bin/env bash
# Compares detour with the meshes' own programs in the folder CONFORMANCE_BIN; scripts/conformance/doc.go names them. The
# programs of the meshes in CONFORMANCE_REQUIRE must be there. OSM's injector is a Go module, built here if it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/deps.sh iptables ip

bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
chmod 755 "$bin" # istio-validation runs as another user, who may not enter CONFORMANCE_BIN
if [[ -n ${CONFORMANCE_BIN:-} ]]; then
	cp -L "$CONFORMANCE_BIN"/* "$bin/"
	chmod 755 "$bin"/*
fi
if [[ ! -e $bin/osm-injector ]]; then
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/detour/conformance
	(cd scripts/conformance/osm && CGO_ENABLED=0 go build -buildvcs=false -o "$cache/" tool)
	cp "$cache/osm-injector" "$bin/"
fi
CGO_ENABLED=0 go build -buildvcs=false -o "$bin/" ./plugin/detour

cd scripts/conformance
CONFORMANCE_BIN=$bin CONFORMANCE_REQUIRE="detour osm ${CONFORMANCE_REQUIRE:-}" go test -count=1 -timeout 30m ./...
