package faults

import (
	"fmt"
	"maps"
	"strings"

	"golang.org/x/sys/unix"
)

// kind is one system call of the filter, and which of its arguments say what it is about.
type kind struct {
	name  string
	paths []int // pointers to paths
	fds   []int
	addr  int // pointer to a socket address, its length in the next; 0 if there is none
}

// calls are the filter's, by number. A Go runtime's own are left out: memory, futexes, timers, polling, signals, threads. So are
// those that can't fail for outside reasons.
var calls = merged(archCalls, map[int]kind{
	unix.SYS_OPENAT:            {name: "openat", paths: []int{1}},
	unix.SYS_OPENAT2:           {name: "openat2", paths: []int{1}},
	unix.SYS_READ:              {name: "read", fds: []int{0}},
	unix.SYS_PREAD64:           {name: "pread64", fds: []int{0}},
	unix.SYS_READV:             {name: "readv", fds: []int{0}},
	unix.SYS_WRITE:             {name: "write", fds: []int{0}},
	unix.SYS_PWRITE64:          {name: "pwrite64", fds: []int{0}},
	unix.SYS_WRITEV:            {name: "writev", fds: []int{0}},
	unix.SYS_COPY_FILE_RANGE:   {name: "copy_file_range", fds: []int{0, 2}},
	unix.SYS_SENDFILE:          {name: "sendfile", fds: []int{1, 0}},
	unix.SYS_SPLICE:            {name: "splice", fds: []int{0, 2}},
	unix.SYS_GETDENTS64:        {name: "getdents64", fds: []int{0}},
	unix.SYS_FACCESSAT:         {name: "faccessat", paths: []int{1}},
	unix.SYS_FACCESSAT2:        {name: "faccessat2", paths: []int{1}},
	unix.SYS_STATX:             {name: "statx", paths: []int{1}},
	unix.SYS_READLINKAT:        {name: "readlinkat", paths: []int{1}},
	unix.SYS_RENAMEAT:          {name: "renameat", paths: []int{1, 3}},
	unix.SYS_RENAMEAT2:         {name: "renameat2", paths: []int{1, 3}},
	unix.SYS_LINKAT:            {name: "linkat", paths: []int{1, 3}},
	unix.SYS_SYMLINKAT:         {name: "symlinkat", paths: []int{0, 2}},
	unix.SYS_UNLINKAT:          {name: "unlinkat", paths: []int{1}},
	unix.SYS_MKDIRAT:           {name: "mkdirat", paths: []int{1}},
	unix.SYS_MKNODAT:           {name: "mknodat", paths: []int{1}},
	unix.SYS_FSYNC:             {name: "fsync", fds: []int{0}},
	unix.SYS_FDATASYNC:         {name: "fdatasync", fds: []int{0}},
	unix.SYS_SYNCFS:            {name: "syncfs", fds: []int{0}},
	unix.SYS_TRUNCATE:          {name: "truncate", paths: []int{0}},
	unix.SYS_FTRUNCATE:         {name: "ftruncate", fds: []int{0}},
	unix.SYS_FALLOCATE:         {name: "fallocate", fds: []int{0}},
	unix.SYS_FLOCK:             {name: "flock", fds: []int{0}},
	unix.SYS_FCHMOD:            {name: "fchmod", fds: []int{0}},
	unix.SYS_FCHMODAT:          {name: "fchmodat", paths: []int{1}},
	unix.SYS_FCHOWN:            {name: "fchown", fds: []int{0}},
	unix.SYS_FCHOWNAT:          {name: "fchownat", paths: []int{1}},
	unix.SYS_UTIMENSAT:         {name: "utimensat", paths: []int{1}},
	unix.SYS_SOCKET:            {name: "socket"},
	unix.SYS_SOCKETPAIR:        {name: "socketpair"},
	unix.SYS_CONNECT:           {name: "connect", fds: []int{0}, addr: 1},
	unix.SYS_BIND:              {name: "bind", fds: []int{0}, addr: 1},
	unix.SYS_LISTEN:            {name: "listen", fds: []int{0}},
	unix.SYS_ACCEPT4:           {name: "accept4", fds: []int{0}},
	unix.SYS_SENDTO:            {name: "sendto", fds: []int{0}},
	unix.SYS_SENDMSG:           {name: "sendmsg", fds: []int{0}},
	unix.SYS_SENDMMSG:          {name: "sendmmsg", fds: []int{0}},
	unix.SYS_RECVFROM:          {name: "recvfrom", fds: []int{0}},
	unix.SYS_RECVMSG:           {name: "recvmsg", fds: []int{0}},
	unix.SYS_SETSOCKOPT:        {name: "setsockopt", fds: []int{0}},
	unix.SYS_GETSOCKOPT:        {name: "getsockopt", fds: []int{0}},
	unix.SYS_PIPE2:             {name: "pipe2"},
	unix.SYS_SETNS:             {name: "setns", fds: []int{0}},
	unix.SYS_UNSHARE:           {name: "unshare"},
	unix.SYS_CLONE:             {name: "clone"},
	unix.SYS_EXECVE:            {name: "execve", paths: []int{0}},
	unix.SYS_EXECVEAT:          {name: "execveat", paths: []int{1}},
	unix.SYS_KILL:              {name: "kill"},
	unix.SYS_PIDFD_SEND_SIGNAL: {name: "pidfd_send_signal"},
	unix.SYS_MOUNT:             {name: "mount", paths: []int{0, 1}},
	unix.SYS_UMOUNT2:           {name: "umount2", paths: []int{0}},
	unix.SYS_CHROOT:            {name: "chroot", paths: []int{0}},
	unix.SYS_PIVOT_ROOT:        {name: "pivot_root", paths: []int{0, 1}},
	unix.SYS_FINIT_MODULE:      {name: "finit_module", fds: []int{0}},
})

func merged(a, b map[int]kind) map[int]kind {
	maps.Copy(a, b)
	return a
}

// runtimes reports whether the call is a Go runtime's own, which no program can influence, or an fstat.
func runtimes(c Call) bool {
	switch c.Detail {
	case "anon_inode:[eventfd]", "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "/proc/self/cgroup", "/proc/self/mountinfo":
		return true
	case "":
		return c.Name == "newfstatat" || c.Name == "statx"
	}
	return strings.HasPrefix(c.Detail, "/sys/fs/cgroup/") || c.Detail == fmt.Sprintf("/proc/%d/cgroup", c.PID) ||
		c.Detail == fmt.Sprintf("/proc/%d/mountinfo", c.PID)
}
