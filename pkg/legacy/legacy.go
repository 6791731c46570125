// Package legacy reads the tables of legacy iptables from the kernel. It starts no program and changes nothing.
package legacy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/rules"
)

// Tables lists the family's tables that the calling thread's network namespace has, in iptables-save's order. Reading any other
// would make it. The error wraps fs.ErrNotExist if the kernel has no legacy tables loaded.
func Tables(f rules.Family) ([]string, error) {
	path := "/proc/thread-self/net/ip_tables_names"
	if f == rules.IPv6 {
		path = "/proc/thread-self/net/ip6_tables_names"
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the kernel has no legacy %s tables loaded: %w", f, err)
	}
	return strings.Fields(string(data)), err
}

// What golang.org/x/sys lacks of linux/netfilter_ipv4/ip_tables.h. IPv6 has the same numbers.
const (
	getInfo    = 64
	getEntries = 65
	hooks      = 5 // NF_INET_NUMHOOKS
	// NameSize is XT_TABLE_MAXNAMELEN.
	NameSize = 32
)

// Info is what follows the name in struct ipt_getinfo.
type Info struct {
	ValidHooks       uint32
	Entry, Underflow [hooks]uint32 // offsets, by hook
	Number, Size     uint32        // of the entries, and of all together in bytes
}

// Table is a table as the kernel gives it.
type Table struct {
	Info
	Family  rules.Family
	Name    string
	Entries []byte
}

// Socket asks the kernel for what a family's netfilter has, of the network namespace in which it was opened.
type Socket struct {
	family    rules.Family
	fd, level int
}

// Open opens a socket in the calling thread's network namespace. The caller must Close it.
func Open(f rules.Family) (Socket, error) {
	s, domain := Socket{family: f, level: unix.IPPROTO_IP}, unix.AF_INET
	if f == rules.IPv6 {
		s.level, domain = unix.IPPROTO_IPV6, unix.AF_INET6
	}
	var err error
	s.fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return s, os.NewSyscallError("open socket", err)
}

// Close closes the socket.
func (s Socket) Close() { _ = unix.Close(s.fd) }

// Get gets an option into b, the beginning of which says what to get.
func (s Socket) Get(option int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), uintptr(s.level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Set sets an option.
func (s Socket) Set(option int, value []byte) error {
	return unix.SetsockoptString(s.fd, s.level, option, string(value))
}

// attempts bounds how often a table is read again whose size has changed meanwhile.
const attempts = 5

// Read reads a table. It needs CAP_NET_ADMIN.
func (s Socket) Read(name string) (t Table, err error) {
	if strconv.IntSize != 64 {
		return t, errors.New("the kernel's structures are not laid out like this package's")
	}
	t.Family, t.Name = s.family, name
	head := make([]byte, NameSize+binary.Size(t.Info))
	const before = NameSize + 8 // struct ipt_get_entries has the size, aligned, ahead of the entries
	for range attempts {
		copy(head, name)
		if err = s.Get(getInfo, head); err != nil {
			return t, err
		}
		if _, err = binary.Decode(head[NameSize:], binary.NativeEndian, &t.Info); err != nil {
			return t, err
		}
		all := make([]byte, before+int(t.Size))
		copy(all, name)
		binary.NativeEndian.PutUint32(all[NameSize:], t.Size)
		if err = s.Get(getEntries, all); !errors.Is(err, unix.EAGAIN) {
			t.Entries = all[before:]
			return t, err
		}
	}
	return t, err
}
