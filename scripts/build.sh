#!/bin/sh
# Builds Go programs of this module into OUT (bin/): static, stripped, with version and commit, for GOOS and GOARCH. The folder
# that it runs in leaves no trace in them.
set -eu
cd "$(dirname "$0")/.."
. scripts/version.sh
x=github.com/detour-cni/detour/pkg/build
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X $x.Version=$VERSION -X $x.Commit=$COMMIT" -o "${OUT:-bin}/" "$@"
