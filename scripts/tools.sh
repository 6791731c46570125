#!/usr/bin/env bash
# Builds cnitool and the CNI plugins that go.mod names as tools, and prints their folder, a cache outside the tree. Go's build
# cache decides what to build again.
set -euo pipefail
cd "$(dirname "$0")/.."

PATH=$PATH:/usr/local/go/bin # where go.dev's archive puts it; sudo drops it from PATH

# This fails if Go is too old and may not download a newer one.
if ! why=$(go list -m 2>&1); then
	echo "tools: Go $(sed -n 's/^go //p' go.mod) or newer is needed: $why" >&2
	echo "tools: https://go.dev/doc/install says how to get it: an archive to unpack. Put its bin folder first in PATH" >&2
	exit 1
fi

folder=${XDG_CACHE_HOME:-$HOME/.cache}/detour/bin
mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9 # go build replaces the programs in place
CGO_ENABLED=0 go build -buildvcs=false -o "$folder/" tool >&2
echo "$folder"
