#!/usr/bin/env bash
# deps.sh PROGRAM...: installs the Debian packages of the missing programs. Prints nothing if none is missing.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin # root may lack them after su

# Packages whose name differs from the program's.
declare -A package_of=(
	[busybox]=busybox-static
	[depmod]=kmod
	[etcd]=etcd-server
	[ip]=iproute2
	[iptables-legacy]=iptables
	[iptables-nft]=iptables
	[nft]=nftables
	[nsenter]=util-linux
	[qemu-system-x86_64]=qemu-system-x86
	[setpriv]=util-linux
)

fail() {
	echo "deps: $*" >&2
	exit 1
}

missing=()
for program; do
	command -v "$program" >/dev/null || missing+=("$program")
done
if ((${#missing[@]} == 0)); then exit 0; fi

command -v apt-get >/dev/null || fail "missing: ${missing[*]}. Only Debian's packages are known here (apt-get): install them yourself."

packages=()
for program in "${missing[@]}"; do
	packages+=("${package_of[$program]:-$program}")
done
((EUID == 0)) || fail "missing: ${missing[*]}. Run as root: apt-get install ${packages[*]}"

echo "deps: installing ${packages[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
{
	apt-get update -qq
	apt-get install -qq --yes --no-install-recommends "${packages[@]}"
} >&2

for program in "${missing[@]}"; do
	command -v "$program" >/dev/null || fail "$program is still missing after apt-get install ${package_of[$program]:-$program}"
done
