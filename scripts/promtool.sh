#!/usr/bin/env bash
# Builds promtool if it is missing and prints its folder, a cache outside the tree. `go install` refuses a module whose go.mod replaces
# another one, so it is built inside its module.
set -euo pipefail

version=0.313.5
folder=${XDG_CACHE_HOME:-$HOME/.cache}/detour/promtool-v$version

mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9 # a second run waits and then finds the program
if [[ ! -x $folder/promtool ]]; then
	echo "promtool: building promtool $version (once; this takes minutes)" >&2
	module=$(go mod download -json "github.com/prometheus/prometheus@v$version" | sed -n 's/.*"Dir": "\(.*\)",/\1/p')
	# Without service discovery, which is four fifths of it. The module's go.work names folders that it does not have.
	cd "$module"
	GOWORK=off CGO_ENABLED=0 nice go build -tags remove_all_sd -buildvcs=false -ldflags "-s -w" -o "$folder/promtool.new" ./cmd/promtool
	mv "$folder/promtool.new" "$folder/promtool"
fi
echo "$folder"
