#!/bin/sh
# Builds Go programs of this module into bin/: static, stripped, with git's version.
set -eu
cd "$(dirname "$0")/.."
version=$(git describe --tags --always --dirty 2>/dev/null || echo unknown)
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$version" -o bin/ "$@"
