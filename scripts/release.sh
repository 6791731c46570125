#!/usr/bin/env bash
# Makes all files of the release VERSION (default: git's tag) in dist/. The same commit gives the same bytes, on any machine and in
# any folder.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
export LC_ALL=C PATH=$PATH:/usr/local/go/bin
. scripts/version.sh

readonly image=ghcr.io/detour-cni/detour
readonly source=https://github.com/detour-cni/detour

fail() {
	echo "release: $*" >&2
	exit 1
}

# check refuses what would be released by mistake.
check() {
	[[ $VERSION =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?$ ]] || fail "VERSION is $VERSION, not of the form v1.2.3"
	[[ -z $(git status --porcelain) ]] || fail "there are changes that are not committed: $(git status --porcelain | head -n 3 | xargs)"
	scripts/changelog.sh "$VERSION" >/dev/null || fail "CHANGELOG.md has no section for $VERSION"
	local others
	others=$(git grep -hoE "$image:v[0-9][0-9A-Za-z.-]*|^ +newTag: v.*|^appVersion: v[^ ]*" -- deploy/base deploy/components deploy/uninstall deploy/helm |
		sed -E "\\#^ *($image:|newTag: |appVersion: )$VERSION\$#d" | sort -u | xargs)
	[[ -z $others ]] || fail "deploy/ has $others; CONTRIBUTING.md says how to set it to $VERSION"
}

# hermetic leaves nothing of the user's Go settings but where modules come from and where they are kept.
hermetic() {
	local name
	for name in GOPROXY GOSUMDB GOMODCACHE GOCACHE; do export "$name=$(go env $name)"; done
	unset GOEXPERIMENT GOAMD64 GOARM64 GODEBUG GOFIPS140
	export GOENV=off GOWORK=off GOFLAGS=-mod=readonly
	GOTOOLCHAIN=$(sed -n 's/^toolchain //p' go.mod)
	export GOTOOLCHAIN
}

# pack FILE FOLDER [TAR'S ARGUMENTS]: a .tar.gz of a folder's content, without the times, owners and modes of this machine.
pack() {
	tar --create --format=gnu --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u+rw,a+rX,go-w \
		--directory "$2" "${@:3}" | gzip -9 --no-name >"$dist/$1"
}

programs() {
	local arch platform
	for arch in amd64 arm64; do
		GOOS=linux GOARCH=$arch OUT=$work/linux-$arch scripts/build.sh ./plugin/detour*
		pack "detour_${VERSION}_linux_$arch.tar.gz" "$work/linux-$arch" . --directory "$PWD" LICENSE README.md
	done
	for platform in {linux,darwin,windows}-{amd64,arm64}; do
		GOOS=${platform%-*} GOARCH=${platform#*-} OUT=$work/kubectl-$platform scripts/build.sh ./plugin/kubectl-detour
		pack "kubectl-detour_${VERSION}_${platform/-/_}.tar.gz" "$work/kubectl-$platform" . --directory "$PWD" LICENSE README.md
	done
}

# oci prints the digest of the index.
oci() {
	local label=org.opencontainers.image
	go run ./scripts/e2e/mkimage -name "$image:$VERSION" -entrypoint /detour-agent -created "$SOURCE_DATE_EPOCH" \
		-label $label.title=detour -label $label.source=$source -label $label.version="$VERSION" -label $label.revision="$COMMIT" \
		-label $label.licenses=Apache-2.0 \
		-o "$dist/detour_${VERSION}_image.tar" amd64="$work/linux-amd64" arm64="$work/linux-arm64"
}

# manifests DIGEST: a file for each mesh, with the webhook where no setting of the mesh's leaves its init container out.
manifests() {
	local kustomize overlay mesh
	kustomize=$(scripts/go-tool.sh kustomize)
	cp -R deploy "$work/deploy"
	for overlay in deploy/overlays/*; do
		mesh=${overlay##*/}
		manifest "$mesh" "$1" "overlays/$mesh" "${components[$mesh]}"
	done
	manifest uninstall "$1" uninstall
}

declare -rA components=([osm]='ready-node webhook' [osm-v1]='ready-node webhook' [fsm]='ready-node webhook' [osm-edge]='' [istio]='')

# manifest NAME DIGEST RESOURCE [COMPONENTS]
manifest() {
	local folder=$work/deploy/released component
	mkdir -p "$folder"
	{
		echo "resources: [../$3]"
		echo "images: [{name: $image, newTag: $VERSION, digest: '$2'}]"
		echo components:
		for component in ${4:-}; do echo "- ../components/$component"; done
	} >"$folder/kustomization.yaml"
	"$kustomize" build "$folder" >"$dist/$1.yaml"
}

# chart DIGEST. Helm takes the files' times from SOURCE_DATE_EPOCH.
chart() {
	local helm
	helm=$(scripts/go-tool.sh helm)
	cp -R deploy/helm/detour "$work/chart"
	sed -i "/^image:/,/^[^ ]/s|^  digest: .*|  digest: $1|" "$work/chart/values.yaml"
	"$helm" package --version "${VERSION#v}" --app-version "$VERSION" --destination "$dist" "$work/chart" >/dev/null
}

# boms: what is in the image, and what is in kubectl detour.
boms() {
	go build -o "$work/sbom" ./scripts/release/sbom
	"$work/sbom" -version "$VERSION" "$work"/linux-*/* >"$dist/detour_$VERSION.cdx.json"
	"$work/sbom" -version "$VERSION" "$work"/kubectl-*/* >"$dist/kubectl-detour_$VERSION.cdx.json"
}

# krew: what krew's index wants, as plugins/detour.yaml.
krew() {
	cat <<-YAML
		apiVersion: krew.googlecontainertools.github.com/v1alpha2
		kind: Plugin
		metadata:
		  name: detour
		spec:
		  version: $VERSION
		  homepage: $source
		  shortDescription: Say where a pod's packets go, and why
		  description: |
		    Say of a pod of a sidecar mesh whether its redirection is as it should be, where a packet goes and which rule decides,
		    and which connections the proxy passed on. Works with any CNI plugin or init container.
		  platforms:
	YAML
	local file platform os bin
	for file in "$dist"/kubectl-detour_*.tar.gz; do
		platform=${file##*"$VERSION"_}
		platform=${platform%.tar.gz}
		os=${platform%_*}
		bin=kubectl-detour
		if [[ $os == windows ]]; then bin+=.exe; fi
		cat <<-YAML
			  - selector: {matchLabels: {os: $os, arch: ${platform#*_}}}
			    uri: $source/releases/download/$VERSION/${file##*/}
			    sha256: $(sha256sum "$file" | cut -d ' ' -f 1)
			    bin: $bin
		YAML
	done
}

check
hermetic
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dist=$PWD/dist
rm -rf dist
mkdir dist
programs
digest=$(oci)
manifests "$digest"
chart "$digest"
boms
krew >dist/krew.yaml
(cd dist && sha256sum -- * >SHA256SUMS)
echo "release: $VERSION is in dist/; the image is $image@$digest"
