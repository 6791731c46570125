package faults

import "golang.org/x/sys/unix"

const archAudit = unix.AUDIT_ARCH_AARCH64

var archCalls = map[int]kind{
	unix.SYS_FSTATAT: {name: "newfstatat", paths: []int{1}},
}
