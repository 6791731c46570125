package nftables

import (
	"bytes"
	"math/big"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// element is an element of a set: a value, or a range of them.
type element struct {
	table            *table
	low, high        []byte // of a concatenation, all low ends and all high ends
	catchall, end    bool
	verdict          *code
	data             []byte
	object           string
	timeout, expires uint64 // milliseconds
	comment          string
	stateful         [][]byte
}

// The attributes and flags that golang.org/x/sys lacks.
const (
	elemExpiration  = 5
	elemUserdata    = 6
	elemExpression  = 7
	elemObject      = 9
	elemKeyEnd      = 10
	elemExpressions = 11

	elemEnd      = 1
	elemCatchall = 2
)

func newElement(t *table, f *netlink.Fields) element {
	flags := f.Number(unix.NFTA_SET_ELEM_FLAGS)
	e := element{
		table: t, low: bytes.Clone(nft.Value(f[unix.NFTA_SET_ELEM_KEY])), high: bytes.Clone(nft.Value(f[elemKeyEnd])),
		end: flags&elemEnd != 0, catchall: flags&elemCatchall != 0, data: bytes.Clone(nft.Value(f[unix.NFTA_SET_ELEM_DATA])),
		timeout: number64(f[unix.NFTA_SET_ELEM_TIMEOUT]), expires: number64(f[elemExpiration]),
		object: f.Text(elemObject), comment: comment(f[elemUserdata]), stateful: expressions(f[elemExpression], f[elemExpressions]),
	}
	if e.high == nil {
		e.high = e.low
	}
	if v, ok := verdictOf(f[unix.NFTA_SET_ELEM_DATA]); ok {
		e.verdict = &v
	}
	return e
}

// join makes one element of the start and the end of an interval. A start without an end goes up to the next start, or up
// to the largest value.
func (s *set) join() {
	var bounds, joined, others []element
	for _, e := range s.elements {
		if e.catchall {
			others = append(others, e)
		} else {
			bounds = append(bounds, e)
		}
	}
	slices.SortStableFunc(bounds, func(a, b element) int {
		if c := bytes.Compare(a.low, b.low); c != 0 {
			return c
		}
		return boolOrder(b.end) - boolOrder(a.end)
	})
	for i, e := range bounds {
		if e.end {
			continue
		}
		if bytes.Equal(e.low, e.high) {
			e.high = before(bounds[i+1:], len(e.low))
		}
		joined = append(joined, e)
	}
	s.elements = slices.Concat(joined, others)
}

// before is the value ahead of the next bound.
func before(next []element, size int) []byte {
	if len(next) == 0 {
		return bytes.Repeat([]byte{0xff}, size)
	}
	high := bytes.Clone(next[0].low)
	for i := len(high) - 1; i >= 0; i-- {
		high[i]--
		if high[i] != 0xff {
			break
		}
	}
	return high
}

// firstByte is the value of the first element, if it is a single byte.
func (s *set) firstByte() *byte {
	if len(s.elements) == 0 || s.elements[0].catchall || len(s.elements[0].low) != 1 || !bytes.Equal(s.elements[0].low, s.elements[0].high) {
		return nil
	}
	return &s.elements[0].low[0]
}

// elements writes what a set holds.
func (w *writer) elements(r *reference) []any {
	list := []any{}
	for i := range r.elements {
		e := &r.elements[i]
		out := w.extras(e, w.elementKey(r, e))
		if r.data != nil && (e.verdict != nil || e.data != nil || e.object != "") {
			list = append(list, []any{out, w.elementData(r, e)})
			continue
		}
		list = append(list, out)
	}
	return list
}

// extras adds what an element has besides its key.
func (w *writer) extras(e *element, key any) any {
	out := one("val", key)
	if e.timeout != 0 {
		out = out.with("timeout", e.timeout/1000)
	}
	if e.expires != 0 {
		out = out.with("expires", e.expires/1000)
	}
	if e.comment != "" {
		out = out.with("comment", e.comment)
	}
	if list := w.statements(e.table, e.stateful); len(list) > 0 { // nft writes the first
		out = append(out, list[0].(object)...)
	}
	if len(out) == 1 {
		return key
	}
	return one("elem", out)
}

func (w *writer) elementKey(r *reference, e *element) any {
	if e.catchall {
		return "*"
	}
	if len(r.key) == 1 {
		return w.part(w.keyForm(r.set, 0), cutOut(r, e.low), cutOut(r, e.high), false)
	}
	lows, highs := split(r.key, e.low), split(r.key, e.high)
	list := make([]any, len(r.key))
	for i := range r.key {
		high := lows[i]
		if i < len(highs) && r.isInterval() {
			high = highs[i]
		}
		list[i] = w.part(w.keyForm(r.set, i), lows[i], high, false)
	}
	return one("concat", list)
}

// keyForm is that of a part of the key. The kernel keeps intervals in network byte order.
func (w *writer) keyForm(s *set, i int) form {
	f := s.key[i]
	if s.isInterval() {
		f.host = false
	}
	return f
}

// cutOut drops the bits that do not belong to the field that the set is looked up for.
func cutOut(r *reference, raw []byte) []byte {
	if r.bits == 0 {
		return raw
	}
	return (&constant{raw, 8 * len(raw)}).shifted(r.shift, r.bits).raw
}

// part writes a range of values. always says that a single address is a prefix, too.
func (w *writer) part(f form, low, high []byte, always bool) any {
	if len(low) != len(high) || bytes.Equal(low, high) && !always {
		return w.write(f, low, true)
	}
	bits := 8 * len(low)
	length, ok := prefixOfRange(new(big.Int).SetBytes(low), new(big.Int).SetBytes(high), bits)
	switch {
	case ok && f.prefix:
		return prefixJSON(w.write(f, low, true), length)
	case ok && f.kind == text && length > 0 && length%8 == 0 && textOf(low) != "":
		return textOf(low[:length/8]) + "*"
	}
	return one("range", []any{w.write(f, low, false), w.write(f, high, false)})
}

func (w *writer) elementData(r *reference, e *element) any {
	switch {
	case e.object != "":
		return e.object
	case e.verdict != nil:
		return verdictJSON(*e.verdict)
	case len(r.data) > 1:
		return w.concatData(r, e)
	case r.spans:
		half := len(e.data) / 2
		return w.part(r.data[0], e.data[:half], e.data[half:], true)
	}
	return w.write(r.data[0], e.data, true)
}

func (w *writer) concatData(r *reference, e *element) any {
	lows := split(r.data, e.data)
	highs := lows
	if r.spans {
		half := len(e.data) / 2
		lows, highs = split(r.data, e.data[:half]), split(r.data, e.data[half:])
	}
	list := make([]any, len(r.data))
	for i, f := range r.data {
		list[i] = w.part(f, lows[i], highs[i], false)
	}
	return one("concat", list)
}
