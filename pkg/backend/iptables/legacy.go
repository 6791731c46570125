package iptables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/rules"
)

// removeFromTables removes jumps and chains from a family's legacy tables. It needs no program, the start of which takes
// longer than all of this. Like iptables itself, it reads each table whole and replaces it; the kernel refuses that if the
// number of rules has changed meanwhile. On an error it may have replaced some of the tables.
func removeFromTables(f rules.Family, own iptext.Save) error {
	if strconv.IntSize != 64 {
		return errors.New("the kernel's structures are not laid out like this package's")
	}
	names, err := legacyTables(f)
	if err != nil {
		return err
	}
	a := abiOf(f)
	fd, err := unix.Socket(a.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return os.NewSyscallError("open raw socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	for _, t := range rules.Tables {
		if len(own.ChainsIn(t)) == 0 || !slices.Contains(names, string(t)) {
			continue
		}
		old, err := a.read(fd, t)
		if err != nil {
			return fmt.Errorf("read table %s: %w", t, err)
		}
		if err := old.replace(fd, own); err != nil {
			return fmt.Errorf("replace table %s: %w", t, err)
		}
	}
	return nil
}

// abi is what differs between ip_tables and ip6_tables; the options have the same numbers (IPT_SO_...).
type abi struct {
	domain, level int
	offsets       int // where struct ipt_entry or ip6t_entry has target_offset, and next_offset behind it
}

func abiOf(f rules.Family) abi {
	if f == rules.IPv6 {
		return abi{unix.AF_INET6, unix.IPPROTO_IPV6, 140}
	}
	return abi{unix.AF_INET, unix.IPPROTO_IP, 88}
}

const (
	getInfo, getEntries    = 64, 65
	setReplace, addCounter = 64, 65

	nameSize    = 32 // XT_TABLE_MAXNAMELEN
	hooks       = 5  // NF_INET_NUMHOOKS
	counterSize = 16 // struct xt_counters
	targetSize  = 32 // struct xt_entry_target, behind which a verdict or a chain's name stands
)

// info is what follows the name in struct ipt_getinfo, and in another order in struct ipt_replace.
type info struct {
	ValidHooks       uint32
	Entry, Underflow [hooks]uint32
	Number, Size     uint32
}

// legacyTable is a table with its entries in order: rules, chains' heads and ends.
type legacyTable struct {
	abi
	info
	name    rules.Table
	entries []entry
}

type entry struct {
	data    []byte
	at      int
	verdict int    // of a rule that jumps: the place that it jumps to; negative for others
	chain   string // of the head of a chain
}

func (a abi) read(fd int, t rules.Table) (*legacyTable, error) {
	table := &legacyTable{abi: a, name: t}
	head := make([]byte, nameSize+binary.Size(table.info))
	copy(head, t)
	if err := getsockopt(fd, a.level, getInfo, head); err != nil {
		return nil, err
	}
	if _, err := binary.Decode(head[nameSize:], binary.NativeEndian, &table.info); err != nil {
		return nil, err
	}
	const before = nameSize + 8 // the size, aligned
	all := make([]byte, before+int(table.Size))
	copy(all, t)
	binary.NativeEndian.PutUint32(all[nameSize:], table.Size)
	if err := getsockopt(fd, a.level, getEntries, all); err != nil {
		return nil, err
	}
	for blob, at := all[before:], 0; at < len(blob); {
		e, err := a.parse(blob[at:], at)
		if err != nil {
			return nil, err
		}
		table.entries = append(table.entries, e)
		at += len(e.data)
	}
	return table, nil
}

func (a abi) parse(b []byte, at int) (entry, error) {
	if len(b) < a.offsets+4 {
		return entry{}, errors.New("an entry is cut off")
	}
	target, next := int(binary.NativeEndian.Uint16(b[a.offsets:])), int(binary.NativeEndian.Uint16(b[a.offsets+2:]))
	if next > len(b) || target+targetSize+4 > next {
		return entry{}, errors.New("an entry is longer than the table")
	}
	e := entry{data: b[:next], at: at, verdict: -1}
	name, _, _ := bytes.Cut(b[target+2:target+31], []byte{0})
	switch body := b[target+targetSize : next]; string(name) {
	case "":
		e.verdict = int(int32(binary.NativeEndian.Uint32(body)))
	case "ERROR":
		chain, _, _ := bytes.Cut(body, []byte{0})
		e.chain = string(chain)
	}
	return e, nil
}

// replace gives the kernel the table without own's chains and the jumps into them. The other rules keep their counters.
func (t *legacyTable) replace(fd int, own iptext.Save) error {
	kept, moved := t.keep(own)
	if len(kept) == len(t.entries) {
		return nil
	}
	all := make([]byte, 0, nameSize+64+int(t.Size))
	all = append(all, t.name...)
	all = append(all, make([]byte, nameSize-len(t.name))...)
	size := uint32(0)
	for _, i := range kept {
		size += uint32(len(t.entries[i].data))
	}
	all = appendNumbers(all, t.ValidHooks, uint32(len(kept)), size)
	for _, place := range slices.Concat(t.Entry[:], t.Underflow[:]) {
		all = appendNumbers(all, moved[place]) // what has no hook is 0
	}
	counters := make([]byte, counterSize*int(t.Number))
	var pinned runtime.Pinner
	pinned.Pin(&counters[0]) // the kernel writes there
	defer pinned.Unpin()
	all = appendNumbers(all, t.Number)
	all = binary.NativeEndian.AppendUint64(all, uint64(uintptr(unsafe.Pointer(&counters[0]))))
	for _, i := range kept {
		all = append(all, t.entries[i].moved(t.abi, moved)...)
	}
	if err := unix.SetsockoptString(fd, t.level, setReplace, string(all)); err != nil {
		return err
	}
	all = appendNumbers(all[:nameSize], uint32(len(kept)), 0)
	for _, i := range kept {
		all = append(all, counters[counterSize*i:counterSize*(i+1)]...)
	}
	return unix.SetsockoptString(fd, t.level, addCounter, string(all))
}

// keep returns the numbers of the entries that stay, and for the offset of every entry the offset that it, or the one that
// follows, has afterwards.
func (t *legacyTable) keep(own iptext.Save) (kept []int, moved map[uint32]uint32) {
	isOwn := func(e entry) bool { return slices.Contains(own.Chains, rules.Chain{Table: t.name, Name: e.chain}) }
	chains := map[int]bool{} // where own's chains begin
	for _, e := range t.entries {
		chains[e.at+len(e.data)] = e.chain != "" && isOwn(e)
	}
	moved = map[uint32]uint32{}
	size, inOwn := 0, false
	for i, e := range t.entries {
		moved[uint32(e.at)] = uint32(size)
		if e.chain != "" {
			inOwn = isOwn(e)
		}
		if !inOwn && !chains[e.verdict] {
			kept = append(kept, i)
			size += len(e.data)
		}
	}
	return kept, moved
}

// moved is the entry with the new offset that it jumps to.
func (e entry) moved(a abi, moved map[uint32]uint32) []byte {
	if e.verdict < 0 {
		return e.data
	}
	target := int(binary.NativeEndian.Uint16(e.data[a.offsets:]))
	out := bytes.Clone(e.data)
	binary.NativeEndian.PutUint32(out[target+targetSize:], moved[uint32(e.verdict)])
	return out
}

func appendNumbers(b []byte, numbers ...uint32) []byte {
	for _, n := range numbers {
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	return b
}

// getsockopt reads into b, the beginning of which says what to read.
func getsockopt(fd, level, option int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
