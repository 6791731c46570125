package rules

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ParseRule reads a line that String printed, or that iptables-save prints for the same rule. It is an error if the
// line has anything that the Ruleset has no type for.
func ParseRule(t Table, line string) (Rule, error) {
	w := words{rest: strings.Fields(line)}
	var r Rule
	for !w.done() {
		switch option := w.option(); option {
		case "-A":
			r.Chain = Chain{t, w.next()}
		case "-m":
			w.module = w.next()
		case "-j":
			r.Target = w.target()
		default:
			r.Matches = append(r.Matches, w.match(option))
		}
		if w.not {
			w.fail("! has nothing to negate")
		}
	}
	if w.err == nil && (r.Chain.Name == "" || r.Target == nil) {
		w.fail("a rule needs -A and -j")
	}
	if w.err != nil {
		return Rule{}, fmt.Errorf("parse rule %q: %w", line, w.err)
	}
	return r, nil
}

// words takes a line apart; the first error sticks and ends it.
type words struct {
	rest   []string
	module string // of the last -m
	not    bool   // a ! that the next match takes
	err    error
}

func (w *words) match(option string) Match {
	switch w.module + " " + option {
	case "mark --mark":
		return Mark{w.value(), w.negated()}
	case "connmark --mark":
		return ConnMark(w.value())
	}
	switch option {
	case "-s":
		return Source{[]netip.Prefix{w.prefix()}}
	case "-d":
		return Destination{[]netip.Prefix{w.prefix()}, w.negated()}
	case "-i":
		return InInterface(w.next())
	case "-o":
		return OutInterface(w.next())
	case "-p":
		return Protocol(w.next())
	case "--sport":
		return SrcPort(w.number(16))
	case "--dport":
		return DstPort{uint16(w.number(16)), w.negated()}
	case "--dports":
		return DstPorts{w.ports(), w.negated()}
	case "--uid-owner":
		return OwnerUID{uint32(w.number(32)), w.negated()}
	case "--gid-owner":
		return OwnerGID{uint32(w.number(32)), w.negated()}
	case "--ctstate":
		return w.states()
	}
	w.fail("%q is not known", option)
	return nil
}

func (w *words) target() Target {
	switch name := w.next(); name {
	case "RETURN":
		return Return{}
	case "ACCEPT":
		return Accept{}
	case "DROP":
		return Drop{}
	case "REDIRECT":
		w.expect("--to-ports")
		return Redirect(w.number(16))
	case "DNAT":
		w.expect("--to-destination")
		return w.dnat()
	case "TPROXY":
		return w.tproxy()
	case "MARK":
		w.expect("--set-xmark")
		return SetMark(w.masked())
	case "CONNMARK":
		return w.connmark()
	case "CT":
		w.expect("--zone")
		return Zone(w.number(16))
	default:
		return Jump(name)
	}
}

func (w *words) dnat() Target {
	word := w.next()
	if to, err := netip.ParseAddrPort(word); err == nil {
		return DNAT{to.Addr(), to.Port()}
	}
	addr, err := netip.ParseAddr(word)
	if err != nil {
		w.fail("%q is not an address", word)
	}
	return DNAT{Addr: addr}
}

func (w *words) tproxy() Target {
	w.expect("--on-port")
	port := uint16(w.number(16))
	w.expect("--on-ip")
	on, err := netip.ParseAddr(w.next())
	if err != nil {
		w.fail("--on-ip: %v", err)
	}
	w.expect("--tproxy-mark")
	return TProxy{port, on, w.masked()}
}

func (w *words) connmark() Target {
	var target Target
	switch option := w.next(); option {
	case "--save-mark":
		target = SaveMark{}
	case "--restore-mark":
		target = RestoreMark{}
	default:
		w.fail("CONNMARK %q is not known", option)
	}
	for _, mask := range []string{"--nfmask", "--ctmask"} {
		w.expect(mask)
		w.expect("0xffffffff")
	}
	return target
}

func (w *words) done() bool { return len(w.rest) == 0 || w.err != nil }

func (w *words) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

// option returns the next option, and keeps in mind whether a ! stood ahead of it.
func (w *words) option() string {
	word := w.next()
	if word == "!" {
		w.not = true
		word = w.next()
	}
	return word
}

// negated takes the ! that stood ahead of the option.
func (w *words) negated() bool {
	not := w.not
	w.not = false
	return not
}

func (w *words) next() string {
	if len(w.rest) == 0 {
		w.fail("a value is missing at the end")
		return ""
	}
	word := w.rest[0]
	w.rest = w.rest[1:]
	return word
}

func (w *words) expect(want string) {
	if got := w.next(); got != want {
		w.fail("%q stands where %q should", got, want)
	}
}

func (w *words) number(bits int) uint64 {
	word := w.next()
	n, err := strconv.ParseUint(word, 10, bits)
	if err != nil {
		w.fail("%q is not a number of %d bits", word, bits)
	}
	return n
}

// value reads a mark, in hexadecimal or not.
func (w *words) value() uint32 { return w.parseValue(w.next()) }

func (w *words) parseValue(word string) uint32 {
	n, err := strconv.ParseUint(word, 0, 32)
	if err != nil {
		w.fail("%q is not a mark", word)
	}
	return uint32(n)
}

// masked reads a mark with the mask that keeps all of it.
func (w *words) masked() uint32 {
	value, mask, _ := strings.Cut(w.next(), "/")
	if mask != "0xffffffff" {
		w.fail("mask %q is not known", mask)
	}
	return w.parseValue(value)
}

func (w *words) ports() []uint16 {
	var out []uint16
	for word := range strings.SplitSeq(w.next(), ",") {
		from, to, isRange := strings.Cut(word, ":")
		first, err := strconv.ParseUint(from, 10, 16)
		last := first
		if isRange && err == nil {
			last, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || last < first {
			w.fail("%q is not a port", word)
			return nil
		}
		for p := first; p <= last; p++ {
			out = append(out, uint16(p))
		}
	}
	return out
}

func (w *words) states() CTState {
	var out CTState
	for word := range strings.SplitSeq(w.next(), ",") {
		switch s := State(word); s {
		case Invalid, Related, Established:
			out = append(out, s)
		default:
			w.fail("state %q is not known", word)
		}
	}
	return out
}

func (w *words) prefix() netip.Prefix {
	word := w.next()
	p, err := netip.ParsePrefix(word)
	if err != nil {
		w.fail("%q is not a range", word)
	}
	return p
}
