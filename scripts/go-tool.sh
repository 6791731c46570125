#!/usr/bin/env bash
# go-tool.sh NAME: builds a program for tests and releases from its Go module, in the version that is pinned here, and prints its
# path in a cache outside the tree.
set -euo pipefail

declare -A packages=(
	[actionlint]=github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
	[crane]=github.com/google/go-containerregistry/cmd/crane@v0.22.1
	[containerd]=github.com/containerd/containerd/v2/cmd/containerd@v2.2.9
	[containerd-shim-runc-v2]=github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@v2.2.9
	[flanneld]=github.com/flannel-io/flannel@v0.28.10
	[golangci-lint]=github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	[govulncheck]=golang.org/x/vuln/cmd/govulncheck@v1.8.0
	[helm]=helm.sh/helm/v4/cmd/helm@v4.3.1
	[kind]=sigs.k8s.io/kind@v0.33.0
	[kustomize]=sigs.k8s.io/kustomize/kustomize/v5@v5.8.2
	[promtool]=github.com/prometheus/prometheus@v0.313.5
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
if [[ -x $folder/$1 ]]; then
	echo "$folder/$1"
	exit
fi

echo "go-tool: building $1 ${package##*@} (once; this takes minutes)" >&2
work=$(mktemp -d "$folder/.build-XXXXXX") # in the same file system, so that mv is atomic
trap 'rm -rf "$work"' EXIT
export CGO_ENABLED=0 GOBIN=$work GOFLAGS='-buildvcs=false -ldflags=-s'

# unpacked prints the module's folder. `go install` refuses a module that replaces others; such a one is built in its folder.
unpacked() { go mod download -json "$package" | sed -n 's/.*"Dir": "\(.*\)",/\1/p'; }

case $1 in
	flanneld) # without two backends: one is for a cloud and needs modules that a proxy may lack, the other needs a C compiler
		cp -r --no-preserve=mode "$(unpacked)" "$work/source"
		sed -i '/pkg\/backend\/\(tencentvpc\|udp\)"/d' "$work/source/main.go"
		nice go -C "$work/source" build -o "$work/flanneld" .
		;;
	promtool) # without service discovery, which is four fifths of it; the module's go.work names folders that it does not have
		GOWORK=off nice go -C "$(unpacked)" build -tags remove_all_sd -o "$work/promtool" ./cmd/promtool
		;;
	*) nice go install "$package" ;;
esac
mv "$work/$1" "$folder/$1"
echo "$folder/$1"
