package iptext

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// ParseRule reads a line that Print printed, or that iptables-save prints for the same rule. It is an error if the line has
// anything that a Ruleset has no type for.
func ParseRule(t rules.Table, line string) (rules.Rule, error) {
	w := words{rest: strings.Fields(line)}
	var r rules.Rule
	for !w.done() {
		switch option := w.option(); option {
		case "-A":
			r.Chain = rules.Chain{Table: t, Name: w.next()}
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
		return rules.Rule{}, fmt.Errorf("parse rule %q: %w", line, w.err)
	}
	return r, nil
}

// words are a line's words that are not parsed yet. The first error stays and ends the parsing.
type words struct {
	rest   []string
	module string // of the last -m
	not    bool   // the next match has a ! ahead of it
	err    error
}

func (w *words) match(option string) rules.Match {
	switch w.module + " " + option {
	case "mark --mark":
		return rules.Mark{Value: w.value(), Not: w.negated()}
	case "connmark --mark":
		return rules.ConnMark(w.value())
	}
	switch option {
	case "-s":
		return rules.Source{Prefixes: []netip.Prefix{w.prefix()}}
	case "-d":
		return rules.Destination{Prefixes: []netip.Prefix{w.prefix()}, Not: w.negated()}
	case "-i":
		return rules.InInterface(w.next())
	case "-o":
		return rules.OutInterface(w.next())
	case "-p":
		return rules.Protocol(w.next())
	case "--sport":
		return rules.SrcPort(w.number(16))
	case "--dport":
		return rules.DstPort{Port: uint16(w.number(16)), Not: w.negated()}
	case "--dports":
		return rules.DstPorts{Ports: w.ports(), Not: w.negated()}
	case "--uid-owner":
		return rules.OwnerUID{ID: uint32(w.number(32)), Not: w.negated()}
	case "--gid-owner":
		return rules.OwnerGID{ID: uint32(w.number(32)), Not: w.negated()}
	case "--ctstate":
		return w.states()
	}
	w.fail("%q is not known", option)
	return nil
}

func (w *words) target() rules.Target {
	switch name := w.next(); name {
	case "RETURN":
		return rules.Return{}
	case "ACCEPT":
		return rules.Accept{}
	case "DROP":
		return rules.Drop{}
	case "REDIRECT":
		w.expect("--to-ports")
		return rules.Redirect(w.number(16))
	case "DNAT":
		w.expect("--to-destination")
		return w.dnat()
	case "TPROXY":
		return w.tproxy()
	case "MARK":
		w.expect("--set-xmark")
		return rules.SetMark(w.masked())
	case "CONNMARK":
		return w.connmark()
	case "CT":
		w.expect("--zone")
		return rules.Zone(w.number(16))
	default:
		return rules.Jump(name)
	}
}

func (w *words) dnat() rules.Target {
	word := w.next()
	if to, err := netip.ParseAddrPort(word); err == nil {
		return rules.DNAT{Addr: to.Addr(), Port: to.Port()}
	}
	addr, err := netip.ParseAddr(word)
	if err != nil {
		w.fail("%q is not an address", word)
	}
	return rules.DNAT{Addr: addr}
}

func (w *words) tproxy() rules.Target {
	w.expect("--on-port")
	port := uint16(w.number(16))
	w.expect("--on-ip")
	on, err := netip.ParseAddr(w.next())
	if err != nil {
		w.fail("--on-ip: %v", err)
	}
	w.expect("--tproxy-mark")
	return rules.TProxy{Port: port, On: on, Mark: w.masked()}
}

func (w *words) connmark() rules.Target {
	var target rules.Target
	switch option := w.next(); option {
	case "--save-mark":
		target = rules.SaveMark{}
	case "--restore-mark":
		target = rules.RestoreMark{}
	default:
		w.fail("CONNMARK %q is not known", option)
	}
	for _, mask := range []string{"--nfmask", "--ctmask"} {
		w.expect(mask)
		w.expect(allBits)
	}
	return target
}

func (w *words) done() bool { return len(w.rest) == 0 || w.err != nil }

func (w *words) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

// option returns the next option and notes whether there is a ! ahead of it.
func (w *words) option() string {
	word := w.next()
	if word == "!" {
		w.not = true
		word = w.next()
	}
	return word
}

// negated reports whether there was a ! ahead of the option, and consumes it.
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
		w.fail("got %q, want %q", got, want)
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

// masked reads a mark with a mask of all bits.
func (w *words) masked() uint32 {
	value, mask, _ := strings.Cut(w.next(), "/")
	if mask != allBits {
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

func (w *words) states() rules.CTState {
	var out rules.CTState
	for word := range strings.SplitSeq(w.next(), ",") {
		switch s := rules.State(word); s {
		case rules.Invalid, rules.Related, rules.Established:
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
