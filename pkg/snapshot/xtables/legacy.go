package xtables

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/rules"
)

// saveLegacy reads the tables of x_tables. It asks only for those that the namespace has: asking for others would make them.
func saveLegacy(p *printer) error {
	names, err := legacyTables(p.family)
	if err != nil || len(names) == 0 {
		return err
	}
	a := abiOf(p.family)
	s, err := openSocket(a.domain)
	if err != nil {
		return err
	}
	defer s.close()
	for _, name := range names {
		t, err := a.read(s, name)
		if err == nil {
			err = p.legacyTable(t)
		}
		if err != nil {
			return fmt.Errorf("read table %s: %w", name, err)
		}
	}
	return nil
}

// legacyTables lists the family's tables, in iptables-save's order.
func legacyTables(f rules.Family) ([]string, error) {
	path := "/proc/thread-self/net/ip_tables_names"
	if f == rules.IPv6 {
		path = "/proc/thread-self/net/ip6_tables_names"
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the kernel has no legacy tables
	}
	return strings.Fields(string(data)), err
}

// abi is what differs between ip_tables and ip6_tables. The options have the same numbers (IPT_SO_...).
type abi struct {
	domain, level int
	addrSize      int // the addresses and masks come first in struct ipt_ip and ip6t_ip6, then the devices
	flags         int // where the flags are, with those that invert behind them
	goTo          byte
	offsets       int // where struct ipt_entry or ip6t_entry has target_offset, and next_offset behind it
	counters      int // and its counters, with which it ends
}

func abiOf(f rules.Family) abi {
	if f == rules.IPv6 {
		return abi{unix.AF_INET6, unix.IPPROTO_IPV6, 16, 131, 4, 140, 152}
	}
	return abi{unix.AF_INET, unix.IPPROTO_IP, 4, 82, 2, 88, 96}
}

const (
	getInfo    = 64
	getEntries = 65
	nameSize   = 32 // XT_TABLE_MAXNAMELEN
	hooks      = 5  // NF_INET_NUMHOOKS
	attempts   = 5
)

// The places in struct ipt_getinfo, behind the name.
const (
	infoHooks = nameSize
	infoEntry = infoHooks + 4
	infoSize  = infoEntry + 2*4*hooks + 4
	infoEnd   = infoSize + 4
)

// legacyTable is a table as the kernel gives it.
type legacyTable struct {
	abi
	name    string
	info    blob // struct ipt_getinfo
	entries blob
}

// read reads a table. If its size changes meanwhile, it tries again.
func (a abi) read(s socket, name string) (legacyTable, error) {
	t := legacyTable{abi: a, name: name, info: make(blob, infoEnd)}
	const before = nameSize + 8 // struct ipt_get_entries has the size, aligned, ahead of the entries
	var err error
	for range attempts {
		copy(t.info, name)
		if err := s.get(a.level, getInfo, t.info); err != nil {
			return t, err
		}
		size := t.info.u32(infoSize)
		all := make(blob, before+int(size))
		copy(all, name)
		all.put(nameSize, size)
		if err = s.get(a.level, getEntries, all); !errors.Is(err, unix.EAGAIN) {
			t.entries = all[before:]
			return t, err
		}
	}
	return t, err
}

// socket is for getsockopt of netfilter's, which any socket of the family will do for.
type socket int

func openSocket(domain int) (socket, error) {
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return socket(fd), os.NewSyscallError("open socket", err)
}

func (s socket) close() { _ = unix.Close(int(s)) }

// get reads into b, the beginning of which says what to read.
func (s socket) get(level, option int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
