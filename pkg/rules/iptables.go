package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxMultiport is how many ports one multiport match holds (XT_MULTI_PORTS).
const maxMultiport = 15

// For returns the ruleset as iptables takes it for one family: one destination a rule, at most 15 ports a rule, and no
// rule of the other family.
func (rs Ruleset) For(f Family) Ruleset {
	out := Ruleset{Chains: rs.Chains}
	for _, r := range rs.Rules {
		out.Rules = append(out.Rules, r.expand(f)...)
	}
	return out
}

func (r Rule) expand(f Family) []Rule {
	for i, m := range r.Matches {
		var variants []Match
		switch m := m.(type) {
		case Destination:
			for _, p := range m {
				if Of(p.Addr()) == f {
					variants = append(variants, Destination{p})
				}
			}
		case DstPorts:
			for chunk := range slices.Chunk(m, maxMultiport) {
				variants = append(variants, chunk)
			}
		default:
			continue
		}
		return r.with(i, variants)
	}
	return []Rule{r}
}

// with returns a copy of the rule for each variant of its i-th match.
func (r Rule) with(i int, variants []Match) []Rule {
	var out []Rule
	for _, v := range variants {
		c := r
		c.Matches = slices.Clone(r.Matches)
		c.Matches[i] = v
		out = append(out, c)
	}
	return out
}

// String prints the rule as iptables-save does: "-A CHAIN MATCHES -j TARGET". The rule must be of the kind that For
// makes; no match or target is unknown to it.
func (r Rule) String() string {
	words := []string{"-A", r.Chain.Name}
	module := "" // the match module that was named last, which is not named again
	use := func(name string, args ...string) {
		if module != name {
			words = append(words, "-m", name)
			module = name
		}
		words = append(words, args...)
	}
	for _, m := range r.Matches {
		switch m := m.(type) {
		case Destination:
			if m[0].Bits() > 0 { // a range that holds every address is no condition
				words = append(words, "-d", m[0].String())
			}
		case Protocol:
			words = append(words, "-p", string(m))
		case DstPort:
			use("tcp", "--dport", fmt.Sprint(uint16(m)))
		case DstPorts:
			use("multiport", "--dports", joinPorts(m))
		case OwnerUID:
			use("owner", "--uid-owner", fmt.Sprint(uint32(m)))
		default:
			panic(fmt.Sprintf("rules: match %T is not printed", m))
		}
	}
	return strings.Join(append(words, r.Target.words()...), " ")
}

func (Return) words() []string { return []string{"-j", "RETURN"} }
func (Accept) words() []string { return []string{"-j", "ACCEPT"} }
func (t Jump) words() []string { return []string{"-j", string(t)} }
func (t Redirect) words() []string {
	return []string{"-j", "REDIRECT", "--to-ports", fmt.Sprint(uint16(t))}
}

func joinPorts(ports []uint16) string {
	var s []string
	for _, p := range ports {
		s = append(s, fmt.Sprint(p))
	}
	return strings.Join(s, ",")
}

// ParseRule reads a line that String printed, or that iptables-save prints for the same rule. It is an error if the
// line has anything that the Ruleset has no type for.
func ParseRule(t Table, line string) (Rule, error) {
	w := words{rest: strings.Fields(line)}
	var r Rule
	for !w.done() {
		switch option := w.next(); option {
		case "-A":
			r.Chain = Chain{t, w.next()}
		case "-m":
			w.next()
		case "-d":
			r.Matches = append(r.Matches, Destination{w.prefix()})
		case "-p":
			r.Matches = append(r.Matches, Protocol(w.next()))
		case "--dport":
			r.Matches = append(r.Matches, DstPort(w.number(16)))
		case "--dports":
			r.Matches = append(r.Matches, w.ports())
		case "--uid-owner":
			r.Matches = append(r.Matches, OwnerUID(w.number(32)))
		case "-j":
			r.Target = w.target()
		default:
			w.fail("%q is not known", option)
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
	rest []string
	err  error
}

func (w *words) done() bool { return len(w.rest) == 0 || w.err != nil }

func (w *words) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
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

func (w *words) number(bits int) uint64 {
	word := w.next()
	n, err := strconv.ParseUint(word, 10, bits)
	if err != nil {
		w.fail("%q is not a number of %d bits", word, bits)
	}
	return n
}

func (w *words) ports() DstPorts {
	var out DstPorts
	for word := range strings.SplitSeq(w.next(), ",") {
		n, err := strconv.ParseUint(word, 10, 16)
		if err != nil {
			w.fail("%q is not a port", word)
		}
		out = append(out, uint16(n))
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

func (w *words) target() Target {
	switch name := w.next(); name {
	case "RETURN":
		return Return{}
	case "ACCEPT":
		return Accept{}
	case "REDIRECT":
		if option := w.next(); option != "--to-ports" {
			w.fail("REDIRECT %q is not known", option)
		}
		return Redirect(w.number(16))
	default:
		return Jump(name)
	}
}
