package nftables

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
)

// key is a value in a set: as many bytes as its datatype has, in network order, followed by zeros.
type key [16]byte

// span is a range of values, both ends included.
type span struct{ from, to key }

// set is the list that one rule looks up.
type set struct {
	name string // in the rule; the kernel replaces anonymousName
	id   uint32 // in the transaction
	of   *nft.Datatype
	// intervals is whether the set has ranges. The kernel finds single values faster.
	intervals bool
	// spans are in order and apart from each other.
	spans []span
}

// anonymousName lets the kernel choose a name.
const anonymousName = "__set%d"

// maxBitmap is how many ports a set of single values holds at most. The kernel makes a bitmap of such short values and
// compares each new one with all that it has: 32,768 take 4 s, and as intervals 0.1 s.
const maxBitmap = 500

func newSet(id uint32, of *nft.Datatype, spans []span) set {
	isRange := func(s span) bool { return s.from != s.to }
	intervals := slices.ContainsFunc(spans, isRange) || of == &nft.Port && len(spans) > maxBitmap
	return set{anonymousName, id, of, intervals, spans}
}

func addrKey(a netip.Addr) (k key) {
	copy(k[:], a.AsSlice())
	return k
}

func prefixSpan(p netip.Prefix) span {
	from := addrKey(p.Masked().Addr())
	to := from
	for bit := p.Bits(); bit < p.Addr().BitLen(); bit++ {
		to[bit/8] |= 0x80 >> (bit % 8)
	}
	return span{from, to}
}

func portSpan(r rules.PortRange) (s span) {
	binary.BigEndian.PutUint16(s.from[:], r.From)
	binary.BigEndian.PutUint16(s.to[:], r.To)
	return s
}

// next is the value after k. The highest has none.
func (k key) next(d *nft.Datatype) (next key, ok bool) {
	for i := d.Size - 1; i >= 0; i-- {
		if k[i]++; k[i] != 0 {
			return k, true
		}
	}
	return k, false
}

func (k key) previous(d *nft.Datatype) key {
	for i := d.Size - 1; i >= 0; i-- {
		if k[i]--; k[i] != 0xff {
			break
		}
	}
	return k
}

func highest(d *nft.Datatype) (k key) {
	copy(k[:], leading(d.Size, 8*d.Size))
	return k
}

// leading is a mask of this size in bytes with so many leading bits.
func leading(size, bits int) []byte {
	mask := make([]byte, size)
	for i := range bits {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return mask
}

// normalize sorts spans and joins those that overlap, which the kernel refuses, and neighbours if the datatype has prefixes.
// So a list has one form. It works in place.
func normalize(d *nft.Datatype, spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return bytes.Compare(a.from[:], b.from[:]) })
	out := spans[:0]
	for _, s := range spans {
		if n := len(out); n > 0 && out[n-1].meets(s, d) {
			if bytes.Compare(s.to[:], out[n-1].to[:]) > 0 {
				out[n-1].to = s.to
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// meets reports whether there is no gap between s and b, which begins no earlier.
func (s span) meets(b span, d *nft.Datatype) bool {
	next, ok := s.to.next(d)
	return bytes.Compare(b.from[:], s.to[:]) <= 0 || d.Prefixes && ok && b.from == next
}

// prefixLength is the length of the prefix that the span is. A single value is one, and of datatypes with prefixes others.
func (s span) prefixLength(d *nft.Datatype) (length int, ok bool) {
	size := d.Size * 8
	if s.from != s.to && !d.Prefixes {
		return 0, false
	}
	bit := func(k key, i int) byte { return k[i/8] >> (7 - i%8) & 1 }
	for length < size && bit(s.from, length) == bit(s.to, length) {
		length++
	}
	for i := length; i < size; i++ {
		if bit(s.from, i) != 0 || bit(s.to, i) != 1 {
			return 0, false
		}
	}
	return length, true
}

func (s span) format(d *nft.Datatype) string {
	from := d.Format(s.from[:d.Size])
	if s.from == s.to {
		return from
	}
	if length, ok := s.prefixLength(d); ok {
		return from + "/" + strconv.Itoa(length)
	}
	return from + "-" + d.Format(s.to[:d.Size])
}

// String is the set's content in nft's language.
func (s set) String() string {
	words := make([]string, len(s.spans))
	for i, span := range s.spans {
		words[i] = span.format(s.of)
	}
	return "{ " + strings.Join(words, ", ") + " }"
}

// maxElements is how many bytes of elements a message may have before one more range. An attribute's length is 16 bits.
const maxElements = 1<<16 - 1 - netlink.AttributeHeader - 2*elementSize

// elements are the set's content as the kernel takes it, split between messages. A range is two elements: its first value and,
// marked as an end, the value after its last.
func (s set) elements() [][]byte {
	var parts [][]byte
	var part []byte
	for _, span := range s.spans {
		if len(part) > maxElements {
			parts = append(parts, part)
			part = nil
		}
		if part == nil {
			part = make([]byte, 0, min(len(s.spans)*2*elementSize, 1<<16))
		}
		part = span.from.appendElement(part, s.of.Size, 0)
		if end, ok := span.to.next(s.of); s.intervals && ok {
			part = end.appendElement(part, s.of.Size, unix.NFT_SET_ELEM_INTERVAL_END)
		}
	}
	return append(parts, part)
}

// elementSize is the maximum size of an element.
const elementSize = 4*netlink.AttributeHeader + len(key{}) + 4

func (k key) appendElement(b []byte, size int, flags uint32) []byte {
	padded := (size + 3) &^ 3
	length := 3*netlink.AttributeHeader + padded
	if flags != 0 {
		length += netlink.AttributeHeader + 4
	}
	b = netlink.AppendAttributeHeader(b, unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, length)
	if flags != 0 {
		b = netlink.AppendAttributeHeader(b, unix.NFTA_SET_ELEM_FLAGS, netlink.AttributeHeader+4)
		b = binary.BigEndian.AppendUint32(b, flags)
	}
	b = netlink.AppendAttributeHeader(b, unix.NLA_F_NESTED|unix.NFTA_SET_ELEM_KEY, 2*netlink.AttributeHeader+padded)
	b = netlink.AppendAttributeHeader(b, unix.NFTA_DATA_VALUE, netlink.AttributeHeader+size)
	return append(b, k[:padded]...)
}

// border is one end of a range: its first value, or the value after its last.
type border struct {
	key
	end bool
}

// spansOf joins the borders that the kernel lists. The last range has no end if it goes up to the highest value.
func (s set) spansOf(borders []border) []span {
	slices.SortFunc(borders, border.compare)
	var spans []span
	for i, b := range borders {
		to := b.key
		switch {
		case b.end:
			continue
		case s.intervals && i+1 < len(borders):
			to = borders[i+1].previous(s.of)
		case s.intervals:
			to = highest(s.of)
		}
		spans = append(spans, span{b.key, to})
	}
	return spans
}

// compare sorts the end of a range ahead of the next range's begin.
func (b border) compare(o border) int {
	if c := bytes.Compare(b.key[:], o.key[:]); c != 0 || b.end == o.end {
		return c
	}
	if b.end {
		return -1
	}
	return 1
}
