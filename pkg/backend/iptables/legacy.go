package iptables

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/legacy"
	"github.com/detour-cni/detour/pkg/rules"
)

// removeFromTables removes jumps and chains from a family's legacy tables. It needs no program, the start of which takes
// longer than all of this. Like iptables itself, it reads each table whole and replaces it; the kernel refuses that if the
// number of rules has changed meanwhile. On an error it may have replaced some of the tables.
func removeFromTables(f rules.Family, own iptext.Save) error {
	names, err := legacy.Tables(f)
	if err != nil {
		return err
	}
	s, err := legacy.Open(f)
	if err != nil {
		return err
	}
	defer s.Close()
	for _, t := range rules.Tables {
		if len(own.ChainsIn(t)) == 0 || !slices.Contains(names, string(t)) {
			continue
		}
		old, err := readTable(s, t)
		if err != nil {
			return fmt.Errorf("read table %s: %w", t, err)
		}
		if err := old.replace(s, own); err != nil {
			return fmt.Errorf("replace table %s: %w", t, err)
		}
	}
	return nil
}

const (
	setReplace, addCounter = 64, 65

	counterSize = 16 // struct xt_counters
)

// legacyTable is a table with its entries in order: rules, chains' heads and ends.
type legacyTable struct {
	legacy.Table
	entries []legacy.Entry
}

func readTable(s legacy.Socket, t rules.Table) (*legacyTable, error) {
	read, err := s.Read(string(t))
	if err != nil {
		return nil, err
	}
	entries, err := read.Split()
	return &legacyTable{read, entries}, err
}

// replace gives the kernel the table without own's chains and the jumps into them. The other rules keep their counters.
func (t *legacyTable) replace(s legacy.Socket, own iptext.Save) error {
	kept, moved := t.keep(own)
	if len(kept) == len(t.entries) {
		return nil
	}
	all := make([]byte, 0, legacy.NameSize+64+int(t.Size))
	all = append(all, t.Name...)
	all = append(all, make([]byte, legacy.NameSize-len(t.Name))...)
	size := uint32(0)
	for _, i := range kept {
		size += uint32(len(t.entries[i].All))
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
		all = append(all, moveJump(t.entries[i], moved)...)
	}
	if err := s.Set(setReplace, all); err != nil {
		return err
	}
	all = appendNumbers(all[:legacy.NameSize], uint32(len(kept)), 0)
	for _, i := range kept {
		all = append(all, counters[counterSize*i:counterSize*(i+1)]...)
	}
	return s.Set(addCounter, all)
}

// keep returns the numbers of the entries that stay, and for the offset of every entry the offset that it, or the one that
// follows, has afterwards.
func (t *legacyTable) keep(own iptext.Save) (kept []int, moved map[uint32]uint32) {
	isOwn := func(chain string) bool {
		return slices.Contains(own.Chains, rules.Chain{Table: rules.Table(t.Name), Name: chain})
	}
	chains := map[int]bool{} // where own's chains begin
	for _, e := range t.entries {
		chain, isHead := e.Head()
		chains[e.At+len(e.All)] = isHead && isOwn(chain)
	}
	moved = map[uint32]uint32{}
	size, inOwn := 0, false
	for i, e := range t.entries {
		moved[uint32(e.At)] = uint32(size)
		if chain, isHead := e.Head(); isHead {
			inOwn = isOwn(chain)
		}
		to, jumps := e.Jump()
		jumpsToOwn := jumps && chains[to]
		if !inOwn && !jumpsToOwn {
			kept = append(kept, i)
			size += len(e.All)
		}
	}
	return kept, moved
}

// moveJump is the entry with the new offset that it jumps to.
func moveJump(e legacy.Entry, moved map[uint32]uint32) []byte {
	to, jumps := e.Jump()
	if !jumps {
		return e.All
	}
	out := bytes.Clone(e.All)
	binary.NativeEndian.PutUint32(out[len(e.All)-len(e.Target)+legacy.TargetSize:], moved[uint32(to)])
	return out
}

func appendNumbers(b []byte, numbers ...uint32) []byte {
	for _, n := range numbers {
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	return b
}
