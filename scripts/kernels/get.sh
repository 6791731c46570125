#!/usr/bin/env bash
# get.sh NAME: downloads and unpacks a kernel of the table and prints its folder, a cache outside the tree. The folder has the
# kernel as `kernel` and its modules for networking as modules.cpio. apt checks the signatures; nothing is installed.
set -euo pipefail
cd "$(dirname "$0")"

read -r name suite archive packages < <(grep "^$1 " table) || {
	echo "kernels: $1 is none of: $(sed -n "s,^\([0-9][^ ]*\) .*,\1,p" table | tr "\n" " ")" >&2
	exit 2
}
folder=${XDG_CACHE_HOME:-$HOME/.cache}/detour/kernels/$name
mkdir -p "$folder"
exec 9>"$folder/.lock"
flock 9
if [[ -e $folder/modules.cpio ]]; then
	echo "$folder"
	exit
fi

echo "kernels: fetching $name ($packages)" >&2
work=$(mktemp -d "$folder/.get-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists/partial,cache/archives/partial,root/usr/lib}

# fetch KEYRING LINE PACKAGE...: downloads packages into $work.
fetch() {
	echo "deb [signed-by=$1] $2 main" >"$work/sources.list"
	shift 2
	local apt=(-o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::Etc::SourceList="$work/sources.list"
		-o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
		-o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3)
	apt-get "${apt[@]}" -qq update >&2
	local p package=()
	for p; do # a package without files names the one that has them
		package+=("$(apt-cache "${apt[@]}" depends "$p" | sed -n 's/^  Depends: \(linux-image-[0-9].*\)/\1/p' | grep . || echo "$p")")
	done
	(cd "$work" && apt-get "${apt[@]}" -qq download "${package[@]}" >&2)
}

debian=/usr/share/keyrings/debian-archive-keyring.gpg
keyring=$debian
case $archive in
	*ubuntu*)
		fetch $debian "http://deb.debian.org/debian bookworm-backports" ubuntu-keyring
		dpkg-deb -x "$work"/ubuntu-keyring_*.deb "$work/keys"
		rm "$work"/*.deb
		keyring=$work/keys/usr/share/keyrings/ubuntu-archive-keyring.gpg
		;;
esac
# shellcheck disable=SC2086 # a list of words
fetch "$keyring" "$archive $suite" $packages
ln -s usr/lib "$work/root/lib" # some packages have their files in one, some in the other
for deb in "$work"/*.deb; do dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$work/root"; done

cp "$work"/root/boot/vmlinuz-* "$work/kernel"
tree=$work/root/lib/modules
version=$(ls "$tree")
modules=$work/slim/lib/modules/$version
mkdir -p "$modules/kernel"
cp "$tree/$version"/modules.{builtin,order} "$modules/"
(cd "$tree/$version" && find kernel/lib kernel/crypto kernel/arch/x86/crypto kernel/net/{core,netfilter,ipv4,ipv6,bpfilter,bridge,802,llc} kernel/drivers/net/{veth,dummy}.ko* \
	-name '*.ko*' 2>/dev/null | cpio -pdm --quiet "$modules") || :
depmod -b "$work/slim" "$version" 2>/dev/null
(cd "$work/slim" && find . | cpio -o -H newc --quiet) >"$work/modules.cpio"
mv "$work/kernel" "$folder/kernel"
mv "$work/modules.cpio" "$folder/modules.cpio" # last: it says that all is there
echo "$folder"
