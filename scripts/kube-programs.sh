#!/usr/bin/env bash
# kube-programs.sh PROGRAM...: builds the missing Kubernetes programs (kube-apiserver, kubelet, ...) and prints their folder, a
# cache outside the tree. Debian has no packages of them, so they come from their Go modules.
set -euo pipefail

version=1.34.4
folder=${XDG_CACHE_HOME:-$HOME/.cache}/detour/kube-v$version
known=' kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl kubelet '

say() { echo "kube-programs: $*" >&2; }

# write_module makes a module in the current folder that requires Kubernetes. Kubernetes' go.mod replaces its staging modules
# with folders of its repository; this one replaces each with its own release.
write_module() {
	go mod init kube 2>/dev/null
	local gomod
	gomod=$(go list -m -f '{{.GoMod}}' "k8s.io/kubernetes@v$version")
	local replaces
	mapfile -t replaces < <(sed -n "s|^[[:space:]]*\(k8s.io/[a-z-]*\) => ./staging/.*|-replace=\1=\1@v0.${version#1.}|p" "$gomod")
	go mod edit "-require=k8s.io/kubernetes@v$version" "${replaces[@]}"
}

# build PROGRAM puts a program into the folder once it is complete.
build() {
	say "building $1 $version (once; this takes minutes)"
	GOFLAGS=-mod=mod CGO_ENABLED=0 nice go build \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v$version" \
		-o "$work/$1" "k8s.io/kubernetes/cmd/$1"
	mv "$work/$1" "$folder/$1"
}

# missing PROGRAM...: prints those that are not in the folder.
missing() {
	local program
	for program; do
		[[ -x $folder/$program ]] || echo "$program"
	done
}

for program; do
	if [[ $known != *" $program "* ]]; then
		say "$program is none of:$known"
		exit 2
	fi
done

if [[ -n $(missing "$@") ]]; then
	mkdir -p "$folder"
	exec 9>"$folder/.lock"
	flock 9 # a second run waits and then finds the programs
	rm -rf "$folder"/.build-* # left by killed runs
	work=$(mktemp -d "$folder/.build-XXXXXX") # in the same file system, so that mv is atomic
	trap 'rm -rf "$work"' EXIT
	cd "$work"
	mapfile -t programs < <(missing "$@")
	if ((${#programs[@]})); then write_module; fi
	for program in "${programs[@]}"; do build "$program"; done
fi
echo "$folder"
