#!/usr/bin/env bash
# Boots other kernels in qemu, without KVM, and runs scripts/kernels' tests in each: what detour programs there, what detourctl
# doctor says beforehand, and what happens where modules are missing. KERNEL names some of scripts/kernels/table, or `all`;
# CASES=all programs every case of testdata, not only those that have every kind of rule; RUN chooses tests. Needs no root of this
# machine, but for installing qemu, busybox, cpio and kmod.
set -euo pipefail
cd "$(dirname "$0")/.."

export PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
scripts/deps.sh busybox cpio depmod ip iptables nft qemu-system-x86_64 setpriv
kernels=${KERNEL:-5.10}
if [[ $kernels == all ]]; then kernels=$(sed -n 's/^\([0-9a-z][^ ]*\) .*/\1/p' scripts/kernels/table); fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
scripts/kernels/guest.sh "$work/guest.cpio"

# boot NAME FOLDER: runs the tests in a kernel and prints what they say.
boot() {
	cat "$work/guest.cpio" "$2/modules.cpio" >"$work/initrd"
	# no_timer_check: a busy machine is no broken timer. -cx16: 6.12 has died at an emulated cmpxchg16b.
	local options="quiet panic=-1 rdinit=/init DETOUR_KERNEL_CASES=${CASES:-few} RUN=${RUN:-.} ${CMDLINE:-}"
	timeout "${LIMIT:-3h}" qemu-system-x86_64 -accel tcg,thread=multi -cpu Nehalem,-cx16 -smp 2 -m 1024 -nodefaults -nographic -no-reboot \
		-serial stdio -kernel "$2/kernel" -initrd "$work/initrd" -append "console=ttyS0 mitigations=off no_timer_check $options" </dev/null
}

failed=()
for kernel in $kernels; do
	folder=$(scripts/kernels/get.sh "$kernel")
	echo "kernels: $kernel"
	boot "$kernel" "$folder" 2>&1 | sed -u 's/\r$//' | tee "$work/$kernel.log" | grep -E '^(exit|[- ]+FAIL|--- |    --- |.*@|.*_test\.go)' || :
	grep -q '^exit 0$' "$work/$kernel.log" || failed+=("$kernel")
done
if ((${#failed[@]} > 0)); then
	echo "kernels: failed on ${failed[*]}" >&2
	exit 1
fi
