package xtables

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// printer appends the words of rules to a text, in iptables' language.
type printer struct {
	family  rules.Family
	setName func(index uint16) (string, bool)
	text    []byte
	unknown bool // what is being printed has a value that has no words
}

func (p *printer) say(words string)             { p.text = append(p.text, words...) }
func (p *printer) sayf(format string, a ...any) { p.text = fmt.Appendf(p.text, format, a...) }

// endLine ends a line. No name or comment in it can do so, which would begin another rule.
func (p *printer) endLine(from int) {
	for i := from; i < len(p.text); i++ {
		if p.text[i] == '\n' {
			p.text[i] = ' '
		}
	}
	p.say("\n")
}

// not begins an option that may be inverted.
func (p *printer) not(inverted bool) {
	if inverted {
		p.say(" !")
	}
}

// doubt makes the extension unknown if there is something that has no words.
func (p *printer) doubt(something bool) { p.unknown = p.unknown || something }

// sayIf says the words of each bit that is set.
func (p *printer) sayIf(flags uint32, of []flag) { p.sayFlags(flags, of, "") }

// sayList says the words of all bits that are set, with commas between them.
func (p *printer) sayList(flags uint32, of []flag) { p.sayFlags(flags, of, ",") }

func (p *printer) sayFlags(flags uint32, of []flag, separator string) {
	between := ""
	for _, f := range of {
		if flags&f.bit != 0 {
			p.say(between + f.words)
			between = separator
			flags &^= f.bit
		}
	}
	p.doubt(flags != 0)
}

type flag struct {
	bit   uint32
	words string
}

// sayNth says words[n]. Without such words, the extension is unknown.
func (p *printer) sayNth(words []string, n int) {
	if n < 0 || n >= len(words) || words[n] == "" {
		p.unknown = true
		return
	}
	p.say(words[n])
}

// span says a number, or a range of numbers.
func (p *printer) span(low, high uint32, between string) {
	if low == high {
		p.sayf("%d", low)
	} else {
		p.sayf("%d%s%d", low, between, high)
	}
}

// marked says a mark with its mask, which is left out if it covers everything.
func (p *printer) marked(mark, mask uint32) {
	p.sayf(" 0x%x", mark)
	if mask != 1<<32-1 {
		p.sayf("/0x%x", mask)
	}
}

// escape escapes what iptables escapes in quotes.
var escape = strings.NewReplacer(`"`, `\"`, `\`, `\\`, `'`, `\'`)

// quote says a string, in quotes if it needs them.
func (p *printer) quote(s string) {
	const plain = "_-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	if s != "" && strings.Trim(s, plain) == "" {
		p.say(" " + s)
		return
	}
	p.say(` "` + escape.Replace(s) + `"`)
}

// addrSize is the size of an address of the family.
func (p *printer) addrSize() int {
	if p.family == rules.IPv6 {
		return 16
	}
	return 4
}

// addr says the address of the family with which b begins.
func (p *printer) addr(b blob) { p.say(formatAddr(b[:p.addrSize()])) }

// prefix says an address with its mask, which is left out if it covers everything.
func (p *printer) prefix(addr, mask blob) {
	p.addr(addr)
	if length, ok := maskLength(mask[:p.addrSize()]); !ok {
		p.say("/" + formatAddr(mask[:p.addrSize()]))
	} else if length < 8*p.addrSize() {
		p.sayf("/%d", length)
	}
}

// formatAddr prints an address as inet_ntop does, which ends ::a.b.c.d in an IPv4 address.
func formatAddr(b []byte) string {
	addr, _ := netip.AddrFromSlice(b)
	if len(b) == 16 && strings.Trim(string(b[:12]), "\x00") == "" && (b[12] != 0 || b[13] != 0) {
		return "::" + netip.AddrFrom4([4]byte(b[12:])).String()
	}
	return addr.String()
}

// maskLength is how many leading bits a mask has, if it has no others.
func maskLength(mask []byte) (length int, ok bool) {
	for length < 8*len(mask) && mask[length/8]>>(7-length%8)&1 == 1 {
		length++
	}
	set := 0
	for _, b := range mask {
		set += bits.OnesCount8(b)
	}
	return length, set == length
}

// blob is a structure of the kernel's. Whoever reads from it has checked its size.
type blob []byte

func (b blob) u16(at int) uint32 { return uint32(binary.NativeEndian.Uint16(b[at:])) }
func (b blob) u32(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
func (b blob) u64(at int) uint64 { return binary.NativeEndian.Uint64(b[at:]) }

func (b blob) put(at int, v uint32) { binary.NativeEndian.PutUint32(b[at:], v) }

func (b blob) put16(at int, v uint16) { binary.NativeEndian.PutUint16(b[at:], v) }

// port is a number in network byte order.
func (b blob) port(at int) uint32 { return uint32(binary.BigEndian.Uint16(b[at:])) }

// string ends with a NUL or with the field.
func (b blob) string(at, size int) string {
	s, _, _ := strings.Cut(string(b[at:at+size]), "\x00")
	return s
}
