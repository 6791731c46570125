package faults

import (
	"maps"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The offsets of struct seccomp_data.
const (
	offNr    = 0
	offArch  = 4
	offFlags = 16 // the low half of the first argument
)

// filter notifies of all of calls, but lets a clone pass that makes a thread: a Go runtime does not survive its failure.
func filter() []unix.SockFilter {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jump := func(op uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	load := func(off uint32) unix.SockFilter { return stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off) }
	ret := func(k uint32) unix.SockFilter { return stmt(unix.BPF_RET|unix.BPF_K, k) }
	f := []unix.SockFilter{
		load(offArch), jump(unix.BPF_JEQ, archAudit, 1, 0), ret(unix.SECCOMP_RET_ALLOW),
		load(offNr), jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 3),
		load(offFlags), jump(unix.BPF_JSET, unix.CLONE_THREAD, 0, 1), ret(unix.SECCOMP_RET_ALLOW), load(offNr),
	}
	for _, nr := range slices.Sorted(maps.Keys(calls)) {
		f = append(f, jump(unix.BPF_JEQ, uint32(nr), 0, 1), ret(unix.SECCOMP_RET_USER_NOTIF))
	}
	return append(f, ret(unix.SECCOMP_RET_ALLOW))
}

// listen puts the calling thread, and all that it starts, under the filter, and returns the listener.
func listen() (int, error) {
	f := filter()
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	for _, flags := range []uintptr{unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, 0} { // an older kernel has no such flag
		fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|flags, uintptr(unsafe.Pointer(&prog)))
		if errno == 0 {
			return int(fd), nil
		}
		if errno != unix.EINVAL || flags == 0 {
			return 0, errno
		}
	}
	panic("unreachable")
}
