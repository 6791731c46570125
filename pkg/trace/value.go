package trace

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

// Value is one value that a packet or a rule has: an address, a number or a name. Only one of the fields is set. Ports, marks, users,
// protocols, states and types of addresses are numbers, as in the kernel; an interface is a name.
type Value struct {
	Addr netip.Addr
	Num  uint64
	Name string
}

// Number is a Value.
func Number[T ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~int](n T) Value { return Value{Num: uint64(n)} }

// Addr is a Value.
func Addr(a netip.Addr) Value { return Value{Addr: a.Unmap()} }

// Name is a Value.
func Name(s string) Value { return Value{Name: s} }

func (v Value) compare(other Value) int {
	return cmp.Or(v.Addr.Compare(other.Addr), cmp.Compare(v.Num, other.Num), strings.Compare(v.Name, other.Name))
}

// String is the value as a reader expects it.
func (v Value) String() string {
	switch {
	case v.Addr.IsValid():
		return v.Addr.String()
	case v.Name != "":
		return v.Name
	}
	return fmt.Sprint(v.Num)
}

// Range has all values from Lo to Hi, both included.
type Range struct{ Lo, Hi Value }

// Just is the range of one value.
func Just(v Value) Range { return Range{v, v} }

// Prefix is the range of a prefix's addresses.
func Prefix(p netip.Prefix) Range {
	p = p.Masked()
	last := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(last)*8; bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	hi, _ := netip.AddrFromSlice(last)
	return Range{Addr(p.Addr()), Addr(hi)}
}

// Wildcard is the range of all names that begin with prefix, as "eth+" of iptables and "eth*" of nft.
func Wildcard(prefix string) Range { return Range{Name(prefix), Name(prefix + "\xff")} }

func (r Range) has(v Value) bool { return r.Lo.compare(v) <= 0 && v.compare(r.Hi) <= 0 }

// Element is an element of a set or a map.
type Element struct {
	// Key has one range for each part of the set's key; an empty key matches everything (nft's catch-all "*").
	Key []Range
	// Data is what a map maps the key to, Verdict what a verdict map maps it to.
	Data    []Value
	Verdict Verdict
}

// Set is a set or a map, anonymous or of a table.
type Set struct {
	Name     string // empty for an anonymous one
	Elements []Element
	// Unknown says why the elements are not known, such as an ipset that was not read; empty if they are.
	Unknown string

	exact   map[exactKey]int // the elements whose keys are single values
	ranges  []int            // the others
	indexed int              // how many elements were there when the two were made
}

// maxParts is how many parts of a key the index has room for. Longer keys are looked up one by one.
const maxParts = 4

type exactKey [maxParts]Value

// NewSet returns an anonymous set of single ranges.
func NewSet(ranges ...Range) *Set {
	s := &Set{}
	for _, r := range ranges {
		s.Elements = append(s.Elements, Element{Key: []Range{r}})
	}
	return s
}

func (s *Set) index() {
	s.exact, s.ranges, s.indexed = make(map[exactKey]int, len(s.Elements)), nil, len(s.Elements)
	for i, e := range s.Elements {
		if key, ok := e.exact(); ok {
			s.exact[key] = i
		} else {
			s.ranges = append(s.ranges, i)
		}
	}
}

func (e Element) exact() (key exactKey, ok bool) {
	if len(e.Key) == 0 || len(e.Key) > maxParts {
		return key, false
	}
	for i, r := range e.Key {
		if r.Lo != r.Hi {
			return key, false
		}
		key[i] = r.Lo
	}
	return key, true
}

func (e Element) has(key []Value) bool {
	if len(e.Key) != len(key) {
		return false
	}
	for i, r := range e.Key {
		if !r.has(key[i]) {
			return false
		}
	}
	return true
}

// find returns the element with the key, or the catch-all; nil if there is none.
func (s *Set) find(key []Value) *Element {
	if s.exact == nil || s.indexed != len(s.Elements) {
		s.index()
	}
	if len(key) <= maxParts {
		var exact exactKey
		copy(exact[:], key)
		if i, ok := s.exact[exact]; ok && len(s.Elements[i].Key) == len(key) {
			return &s.Elements[i]
		}
	}
	var all *Element
	for _, i := range s.ranges {
		e := &s.Elements[i]
		if len(e.Key) == 0 {
			all = e
		} else if e.has(key) {
			return e
		}
	}
	return all
}
