package legacy

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/detour-cni/detour/pkg/rules"
)

// TargetSize is the size of struct xt_entry_target: size, name and revision. A verdict or a chain's name stands behind it.
const TargetSize = 32

// Entry is struct ipt_entry or ip6t_entry: a rule, the head of a chain, or the end of the table.
type Entry struct {
	At     int    // its offset in the table
	All    []byte // it has a target at its end
	Target []byte
}

// Name is the target's; "" if it is a verdict or a jump.
func (e Entry) Name() string { return text(e.Target[2 : TargetSize-1]) }

// Verdict is that of a target without a name: below 0 a verdict, else the offset to which it jumps.
func (e Entry) Verdict() int { return int(int32(binary.NativeEndian.Uint32(e.Target[TargetSize:]))) }

// Jump returns the offset of a rule's jump, if its target is one.
func (e Entry) Jump() (to int, ok bool) {
	if e.Name() != "" || e.Verdict() < 0 {
		return 0, false
	}
	return e.Verdict(), true
}

// Head returns the name of the chain of which an entry is the head. The end of the table is named ERROR.
func (e Entry) Head() (chain string, ok bool) {
	if e.Name() != "ERROR" {
		return "", false
	}
	return text(e.Target[TargetSize:]), true
}

func text(b []byte) string {
	name, _, _ := bytes.Cut(b, []byte{0})
	return string(name)
}

// ErrCut says that an entry is not laid out as expected.
var ErrCut = errors.New("the kernel gives an entry that doesn't fit into the table: this kernel's structures are unknown")

// layout is where an entry has target_offset, with next_offset behind it, and the size of its header.
type layout struct{ offsets, header int }

func layoutOf(f rules.Family) layout {
	if f == rules.IPv6 {
		return layout{140, 168}
	}
	return layout{88, 112}
}

// Split reads the entries. Those that it returns can be read without further checks.
func (t Table) Split() ([]Entry, error) {
	var all []Entry
	l := layoutOf(t.Family)
	for at := 0; at < len(t.Entries); {
		b := t.Entries[at:]
		if len(b) < l.header {
			return nil, ErrCut
		}
		target, next := int(binary.NativeEndian.Uint16(b[l.offsets:])), int(binary.NativeEndian.Uint16(b[l.offsets+2:]))
		if target < l.header || next < target+TargetSize || next > len(b) {
			return nil, ErrCut
		}
		e := Entry{at, b[:next], b[target:next]}
		if e.Name() == "" && len(e.Target) < TargetSize+4 {
			return nil, ErrCut
		}
		all = append(all, e)
		at += next
	}
	return all, nil
}
