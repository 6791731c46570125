#!/usr/bin/env bash
# Builds flanneld if it is missing and prints its folder, a cache outside the tree. Debian has no package of it, so it comes from
# its Go module.
set -euo pipefail

version=0.28.10
folder=${XDG_CACHE_HOME:-$HOME/.cache}/detour/flannel-v$version

mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9 # a second run waits and then finds the program
if [[ ! -x $folder/flanneld ]]; then
	echo "flanneld: building flanneld $version (once; this takes a minute)" >&2
	rm -rf "$folder"/.build-* # left by killed runs
	work=$(mktemp -d "$folder/.build-XXXXXX") # in the same file system, so that mv is atomic
	trap 'rm -rf "$work"' EXIT
	cd "$work"
	module=$(go mod download -json "github.com/flannel-io/flannel@v$version" | sed -n 's/.*"Dir": "\(.*\)",/\1/p')
	cp -r --no-preserve=mode "$module" source
	cd source
	# Without two backends: one is for a cloud and needs modules that a proxy may lack, the other needs a C compiler.
	sed -i '/pkg\/backend\/\(tencentvpc\|udp\)"/d' main.go
	CGO_ENABLED=0 nice go build -ldflags "-s -w" -o "$work/flanneld" .
	mv "$work/flanneld" "$folder/flanneld"
fi
echo "$folder"
