#!/bin/sh
# Lints Go and shell. Builds golangci-lint into the cache once.
set -eu
cd "$(dirname "$0")/.."
version=v2.15.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/detour/golangci-lint-$version
[ -x "$cache/golangci-lint" ] || GOBIN=$cache go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version"
"$cache/golangci-lint" run ./...
"$cache/golangci-lint" run --build-tags kubeapi ./pkg/apitest/...
"$cache/golangci-lint" run --build-tags e2e ./scripts/e2e/...
(cd scripts/conformance && "$cache/golangci-lint" run ./...)
scripts/deps.sh shellcheck
git ls-files 'scripts/*.sh' .ci/run | xargs shellcheck
