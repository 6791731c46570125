#!/bin/sh
# Lints Go and shell.
set -eu
cd "$(dirname "$0")/.."
lint=$(scripts/go-tool.sh golangci-lint)
"$lint" run ./...
"$lint" run --build-tags kubeapi ./pkg/apitest/...
"$lint" run --build-tags e2e ./scripts/e2e/...
(cd scripts/conformance && "$lint" run ./...)
scripts/deps.sh shellcheck
git ls-files 'scripts/*.sh' .ci/run | xargs shellcheck
