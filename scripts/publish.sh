#!/usr/bin/env bash
# publish.sh REGISTRY: pushes the image and the chart in dist/ to REGISTRY, such as ghcr.io/detour-cni, to which crane and helm have
# been logged in. Prints image= and chart=, each with its digest. What is pushed is what the manifests and the chart name.
set -euo pipefail
cd "$(dirname "$0")/.."
registry=$1
crane=$(scripts/go-tool.sh crane)
helm=$(scripts/go-tool.sh helm)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar --extract --file dist/detour_*_image.tar --directory "$work"
version=$(basename dist/detour_*_image.tar _image.tar)
version=${version#detour_}
image=$("$crane" push "$work" "$registry/detour:$version")
grep -q "@${image#*@}$" dist/uninstall.yaml || {
	echo "publish: $image was pushed, which is not what the manifests name" >&2
	exit 1
}

http=()
if [[ $registry == 127.0.0.1:* ]]; then http=(--plain-http); fi # tests
chart=$("$helm" push "${http[@]}" dist/detour-*.tgz "oci://$registry/charts" 2>&1 | sed -n 's/^Digest: //p')
echo "image=$image"
echo "chart=$registry/charts/detour@$chart"
