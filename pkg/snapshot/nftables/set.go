package nftables

import (
	"bytes"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// set is a set or a map.
type set struct {
	name      string
	flags     uint32
	handle    uint64
	key, data []form // of a concatenation several; a set has no data
	keySize   int    // bits
	keyNames  []any
	dataName  string
	spans     bool   // the data are ranges
	objects   uint32 // the type of what a map of objects has
	size      uint32
	policy    uint32
	timeout   uint64 // milliseconds
	gc        uint32 // milliseconds
	comment   string
	stateful  [][]byte // expressions that each element gets
	elements  []element
	filled    bool
}

// The attributes and flags that golang.org/x/sys lacks.
const (
	setObjectType  = 15
	setHandle      = 16
	setExpression  = 17
	setExpressions = 18
	setDescConcat  = 2
	setFieldLength = 1

	setObjects = 1 << 6
)

var setFlags = []string{"", "constant", "interval", "", "timeout"}

func (s *set) anonymous() bool { return s.flags&unix.NFT_SET_ANONYMOUS != 0 }
func (s *set) meter() bool     { return s.anonymous() && s.flags&unix.NFT_SET_EVAL != 0 }
func (s *set) keyBits() int    { return s.keySize }

func (s *set) isInterval() bool { return s.flags&unix.NFT_SET_INTERVAL != 0 }

func newSet(f *netlink.Fields) *set {
	u := parseUserdata(f[unix.NFTA_SET_USERDATA])
	desc := netlink.Parse(f[unix.NFTA_SET_DESC])
	s := &set{
		name: f.Text(unix.NFTA_SET_NAME), flags: f.Number(unix.NFTA_SET_FLAGS), handle: number64(f[setHandle]),
		keySize: 8 * int(f.Number(unix.NFTA_SET_KEY_LEN)), size: desc.Number(unix.NFTA_SET_DESC_SIZE), policy: f.Number(unix.NFTA_SET_POLICY),
		timeout: number64(f[unix.NFTA_SET_TIMEOUT]), gc: f.Number(unix.NFTA_SET_GC_INTERVAL), comment: u.text(udataSetComment),
		stateful: expressions(f[setExpression], f[setExpressions]),
	}
	kind := f.Number(unix.NFTA_SET_KEY_TYPE)
	s.keyNames = typeNames(kind)
	s.key = forms(kind, s.keySize, u[udataSetKeyTypeof], order(&u, udataSetKeyOrder), fieldLengths(desc[setDescConcat]))
	switch {
	case s.flags&setObjects != 0:
		s.objects = f.Number(setObjectType)
		s.dataName = objectNames.of(s.objects)
		s.data = []form{typeString.form()}
	case s.flags&unix.NFT_SET_MAP != 0:
		s.readData(f, &u)
	}
	return s
}

func (s *set) readData(f *netlink.Fields, u *userdata) {
	kind, size := f.Number(unix.NFTA_SET_DATA_TYPE), 8*int(f.Number(unix.NFTA_SET_DATA_LEN))
	spans, _ := u.number(udataSetDataInterval)
	if s.spans = spans != 0; s.spans {
		size /= 2
	}
	for i, name := range typeNames(kind) {
		if i > 0 {
			s.dataName += " . "
		}
		s.dataName += name.(string)
	}
	s.data = forms(kind, size, u[udataSetDataTypeof], order(u, udataSetDataOrder), nil)
}

func typeNames(kind uint32) (list []any) {
	for _, t := range typesOf(kind) {
		list = append(list, t.name)
	}
	return list
}

// order reports whether numbers are in the machine's byte order; known is false if the set's creator did not say.
func order(u *userdata, kind int) (o byteOrder) {
	n, known := u.number(kind)
	return byteOrder{n == hostOrder, known}
}

type byteOrder struct{ host, known bool }

// forms are those of a key or of data of this size. Only a typeof tells the size of an integer in a concatenation.
func forms(kind uint32, size int, typeof []byte, o byteOrder, lengths []int) []form {
	types := typesOf(kind)
	if list := parseTypeof(typeof); len(list) == len(types) && (len(list) > 1 && sizeOf(list) == size || len(list) == 1 && (list[0].bits+7)/8*8 == size) {
		return list
	}
	if len(types) == 1 {
		f := form{types[0], size, types[0].host}
		if o.known && f.kind != text {
			f.host = o.host
		}
		return []form{f}
	}
	list := make([]form, len(types))
	for i, t := range types {
		list[i] = t.form()
		if len(lengths) == len(types) {
			list[i].bits = lengths[i]
		}
		if list[i].bits == 0 {
			list[i].bits = registerBits
		}
	}
	return list
}

// learnKey takes the sizes of integers from what an anonymous set is looked up for, as nothing else tells them.
func (s *set) learnKey(from operand) {
	parts, ok := from.(concat)
	if !ok || !s.anonymous() || len(parts) != len(s.key) {
		return
	}
	for i, part := range parts {
		if f := part.form(); s.key[i].datatype == typeInteger && padded(f.bits) == padded(s.key[i].bits) {
			s.key[i].bits, s.key[i].host = f.bits, f.host
		}
	}
}

func sizeOf(list []form) (bits int) {
	for _, f := range list {
		bits += padded(f.bits)
	}
	return bits
}

func fieldLengths(desc []byte) (bits []int) {
	for a := range netlink.Attributes(desc) {
		f := netlink.Parse(a.Data)
		bits = append(bits, 8*int(f.Number(setFieldLength)))
	}
	return bits
}

// expressions are the one in an attribute, or those in a list.
func expressions(single, list []byte) (all [][]byte) {
	if single != nil {
		return [][]byte{bytes.Clone(single)}
	}
	for a := range netlink.Attributes(list) {
		all = append(all, bytes.Clone(a.Data))
	}
	return all
}

func (w *writer) set(t *table, s *set) object {
	word := "set"
	if s.data != nil {
		word = "map"
	}
	var kind any = s.keyNames
	if len(s.keyNames) == 1 {
		kind = s.keyNames[0]
	}
	out := object{{"family", t.familyName()}, {"name", s.name}, {"table", t.name}, {"type", kind}, {"handle", s.handle}}
	if s.comment != "" {
		out = out.with("comment", s.comment)
	}
	if s.data != nil {
		out = out.with("map", s.dataName)
	}
	if s.flags&unix.NFT_SET_CONSTANT == 0 {
		if s.policy != unix.NFT_SET_POL_PERFORMANCE {
			out = out.with("policy", "memory")
		}
		if s.size != 0 {
			out = out.with("size", s.size)
		}
	}
	if list := words(setFlags, s.flags); len(list) > 0 {
		out = out.with("flags", list)
	}
	if s.timeout != 0 {
		out = out.with("timeout", s.timeout/1000)
	}
	if s.gc != 0 {
		out = out.with("gc-interval", s.gc/1000)
	}
	if len(s.elements) > 0 {
		out = out.with("elem", w.elements(&reference{set: s}))
	}
	if len(s.stateful) > 0 {
		out = out.with("stmt", w.statelessly(func() []any { return w.statements(t, s.stateful) }))
	}
	return one(word, out)
}

// statelessly leaves counters and the like out.
func (w *writer) statelessly(do func() []any) []any {
	defer func(was bool) { w.stateless = was }(w.stateless)
	w.stateless = true
	return do()
}

// statements writes expressions that stand for a statement each.
func (w *writer) statements(t *table, code [][]byte) (list []any) {
	for _, one := range code {
		list = append(list, w.decode(t, netlink.AppendAttributes(nil, netlink.Nest(unix.NFTA_LIST_ELEM, one)))...)
	}
	return list
}

// sorted puts elements into the order in which nft writes them, and joins the bounds of intervals.
func (s *set) sorted() {
	switch {
	case s.isInterval() && len(s.key) > 1: // as the kernel lists them
	case s.isInterval():
		s.join()
	default:
		slices.Reverse(s.elements) // nft's sort turns equal ones around
		slices.SortStableFunc(s.elements, s.compare)
	}
}

func (s *set) compare(a, b element) int {
	switch {
	case a.catchall || b.catchall:
		return boolOrder(a.catchall) - boolOrder(b.catchall)
	case len(s.key) > 1:
		return bytes.Compare(s.reversed(a.low), s.reversed(b.low))
	case s.key[0].kind == bitmask: // by the lowest bit
		x, _ := number(s.key[0].inOrder(a.low))
		y, _ := number(s.key[0].inOrder(b.low))
		return compareNumbers(x&-x, y&-y)
	case s.key[0].kind == text:
		return bytes.Compare(reverse(a.low), reverse(b.low))
	}
	return bytes.Compare(s.key[0].inOrder(a.low), s.key[0].inOrder(b.low))
}

func boolOrder(b bool) int {
	if b {
		return 1
	}
	return 0
}

func compareNumbers(x, y uint64) int { return boolOrder(x > y) - boolOrder(x < y) }

func reverse(b []byte) []byte {
	b = slices.Clone(b)
	slices.Reverse(b)
	return b
}

// reversed is a concatenation without what fills its registers, last byte first: so nft compares them.
func (s *set) reversed(raw []byte) []byte {
	return reverse(bytes.Join(split(s.key, raw), nil))
}

// split cuts the parts of a concatenation out.
func split(list []form, raw []byte) (parts [][]byte) {
	for _, f := range list {
		size := min(padded(f.bits)/8, len(raw))
		parts = append(parts, raw[:min((f.bits+7)/8, size)])
		raw = raw[size:]
	}
	return parts
}
