#!/usr/bin/env bash
# guest.sh OUT: writes the file system that every kernel under test boots with, as a cpio archive: the tests, what they read,
# and this machine's programs that they start.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=$1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,usr/share,lib64,proc,sys,dev,run,tmp,etc,root,detour,usr/lib/x86_64-linux-gnu}
chmod 1777 "$root/tmp"
ln -s usr/lib "$root/lib"

# program NAME...: copies programs and the libraries that they are linked with. A link stays one.
program() {
	local name path library
	for name; do
		path=$(readlink -f "$(command -v "$name")")
		cp -n "$path" "$root/usr/sbin/"
		[[ $(basename "$path") == "$name" ]] || ln -sf "$(basename "$path")" "$root/usr/sbin/$name"
		for library in $(ldd "$path" 2>/dev/null | grep -o '/[^ ]*\.so[^ ]*'); do
			mkdir -p "$root$(dirname "$library")"
			cp -nL "$library" "$root$library"
		done
	done
}
program nft ip setpriv kmod
for p in iptables ip6tables; do
	for v in '' -nft -legacy; do
		for s in '' -save -restore; do program "$p$v$s"; done
	done
done
for p in modprobe rmmod lsmod insmod; do ln -s /usr/sbin/kmod "$root/sbin/$p"; done
cp -r /usr/lib/x86_64-linux-gnu/xtables "$root/usr/lib/x86_64-linux-gnu/"
cp "$(command -v busybox)" "$root/bin/busybox"
cp scripts/kernels/init "$root/init"
printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"

OUT=$root/detour/programs scripts/build.sh ./plugin/detour ./plugin/detourctl
mkdir -p "$root/detour/scripts/kernels"
CGO_ENABLED=0 go test -c -tags kernels -ldflags '-s -w' -o "$root/detour/scripts/kernels/tests" ./scripts/kernels
cp -r testdata "$root/detour/"
(cd "$root" && find . | cpio -o -H newc --quiet) >"$out"
