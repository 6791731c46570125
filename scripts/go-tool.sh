#!/usr/bin/env bash
# go-tool.sh NAME: builds a program for tests and releases from its Go module, in the version that is pinned here, and prints its
# path in a cache outside the tree.
set -euo pipefail

declare -A packages=(
	[actionlint]=github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
	[crane]=github.com/google/go-containerregistry/cmd/crane@v0.22.1
	[containerd]=github.com/containerd/containerd/v2/cmd/containerd@v2.2.9
	[containerd-shim-runc-v2]=github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@v2.2.9
	[golangci-lint]=github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	[helm]=helm.sh/helm/v4/cmd/helm@v4.3.1
	[kind]=sigs.k8s.io/kind@v0.33.0
	[kustomize]=sigs.k8s.io/kustomize/kustomize/v5@v5.8.2
)

package=${packages[$1]:-}
if [[ -z $package ]]; then
	echo "go-tool: $1 is none of: ${!packages[*]}" >&2
	exit 2
fi
folder=${XDG_CACHE_HOME:-$HOME/.cache}/detour/$1-${package##*@}
mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9 # a second run waits and then finds the program
if [[ ! -x $folder/$1 ]]; then
	echo "go-tool: building $1 ${package##*@} (once; this takes a minute)" >&2
	CGO_ENABLED=0 GOBIN=$folder nice go install -ldflags "-s -w" "$package"
fi
echo "$folder/$1"
