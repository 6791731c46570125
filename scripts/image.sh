#!/usr/bin/env bash
# Builds the image NAME for each of ARCHS (default: this machine's; "amd64 arm64" for both) with docker or buildah, and prints
# its size. Without docker and buildah it writes one OCI archive for all of ARCHS, bin/image.tar. Pulls nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/local/go/bin

. scripts/version.sh

name=${NAME:-detour:$VERSION}
archs=${ARCHS:-$(go env GOARCH)}

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT

# tool prints the first builder that works.
tool() {
	if docker info >/dev/null 2>&1; then
		echo docker
	elif command -v buildah >/dev/null; then
		echo buildah
	else
		echo archive
	fi
}

# mb FILE...: their total size.
mb() { du --apparent-size --bytes --total "$@" | awk 'END { printf "%.1f MB", $1 / 1e6 }'; }

builder=$(tool)
full=$name # containerd's name for it
if [[ $name != */* ]]; then full=docker.io/library/$name; fi
folders=()
for arch in $archs; do
	folder=$context/linux-$arch
	GOOS=linux GOARCH=$arch OUT=$folder scripts/build.sh ./plugin/detour*
	tag=$name
	if [[ $archs == *' '* ]]; then tag=$name-$arch; fi
	case $builder in
		docker) docker build --quiet --platform "linux/$arch" --build-arg "TARGETARCH=$arch" --file Dockerfile --tag "$tag" "$context" >/dev/null ;;
		buildah) buildah build --quiet --arch "$arch" --build-arg "TARGETARCH=$arch" --file Dockerfile --tag "$tag" "$context" >/dev/null ;;
		archive) tag=bin/image.tar folders+=("$arch=$folder") ;;
	esac
	echo "image: $tag, $arch, $(mb "$folder"/*) of programs, $(gzip -9 --to-stdout "$folder"/* | wc --bytes | awk '{ printf "%.1f MB", $1 / 1e6 }') compressed ($builder)"
done
if ((${#folders[@]})); then
	mkdir -p bin
	go run ./scripts/e2e/mkimage -name "$full" -entrypoint /detour-agent -o bin/image.tar "${folders[@]}"
fi
