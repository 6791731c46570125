#!/bin/sh
# Writes the Helm chart's templates anew from deploy/'s kustomizations. With "test" as its argument it changes nothing, and holds the
# chart against them with the real programs instead; more arguments go to go test.
set -eu
cd "$(dirname "$0")/.."
DETOUR_KUSTOMIZE=$(scripts/go-tool.sh kustomize)
if [ "${1:-}" != test ]; then
	exec go run ./scripts/chart "$DETOUR_KUSTOMIZE"
fi
shift
DETOUR_HELM=$(scripts/go-tool.sh helm)
export DETOUR_KUSTOMIZE DETOUR_HELM
exec go test -tags chart -count=1 "$@" ./scripts/chart
