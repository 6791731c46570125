package faults

import "golang.org/x/sys/unix"

const archAudit = unix.AUDIT_ARCH_X86_64

var archCalls = map[int]kind{
	unix.SYS_OPEN:       {name: "open", paths: []int{0}},
	unix.SYS_CREAT:      {name: "creat", paths: []int{0}},
	unix.SYS_ACCESS:     {name: "access", paths: []int{0}},
	unix.SYS_STAT:       {name: "stat", paths: []int{0}},
	unix.SYS_LSTAT:      {name: "lstat", paths: []int{0}},
	unix.SYS_NEWFSTATAT: {name: "newfstatat", paths: []int{1}},
	unix.SYS_READLINK:   {name: "readlink", paths: []int{0}},
	unix.SYS_RENAME:     {name: "rename", paths: []int{0, 1}},
	unix.SYS_LINK:       {name: "link", paths: []int{0, 1}},
	unix.SYS_SYMLINK:    {name: "symlink", paths: []int{0, 1}},
	unix.SYS_UNLINK:     {name: "unlink", paths: []int{0}},
	unix.SYS_MKDIR:      {name: "mkdir", paths: []int{0}},
	unix.SYS_RMDIR:      {name: "rmdir", paths: []int{0}},
	unix.SYS_MKNOD:      {name: "mknod", paths: []int{0}},
	unix.SYS_CHMOD:      {name: "chmod", paths: []int{0}},
	unix.SYS_CHOWN:      {name: "chown", paths: []int{0}},
	unix.SYS_LCHOWN:     {name: "lchown", paths: []int{0}},
	unix.SYS_ACCEPT:     {name: "accept", fds: []int{0}},
	unix.SYS_PIPE:       {name: "pipe"},
	unix.SYS_FORK:       {name: "fork"},
	unix.SYS_VFORK:      {name: "vfork"},
	unix.SYS_FUTIMESAT:  {name: "futimesat", paths: []int{1}},
	unix.SYS_UTIMES:     {name: "utimes", paths: []int{0}},
}
