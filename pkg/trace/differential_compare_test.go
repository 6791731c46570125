package trace_test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/detour-cni/detour/pkg/nftrace"
	"github.com/detour-cni/detour/pkg/trace"
)

// place is a rule, or with number 0 the policy of a chain.
type place struct {
	family, table, chain string
	number               int
}

func (p place) String() string {
	if p.number == 0 {
		return fmt.Sprintf("%s %s %s policy", p.family, p.table, p.chain)
	}
	return fmt.Sprintf("%s %s %s rule %d", p.family, p.table, p.chain, p.number)
}

// numbers are the rules' numbers by their handles; a place has the handle here.
type numbers map[place]int

var (
	tableLine = regexp.MustCompile(`^table (\S+) (\S+) {`)
	chainLine = regexp.MustCompile(`^\tchain (\S+) {`)
	ruleLine  = regexp.MustCompile(`^\t\t.*# handle (\d+)$`)
)

// numbersOf reads what `nft -a list ruleset` prints. Its JSON is empty if it does not know a rule of iptables-nft.
func numbersOf(text string) numbers {
	n, at, last := numbers{}, place{}, 0
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := tableLine.FindStringSubmatch(line); m != nil {
			at.family, at.table = m[1], m[2]
		} else if m := chainLine.FindStringSubmatch(line); m != nil {
			at.chain, last = m[1], 0
		} else if m := ruleLine.FindStringSubmatch(line); m != nil {
			last++
			at.number, _ = strconv.Atoi(m[1])
			n[at] = last
		}
	}
	return n
}

// hits are the rules and policies that the kernel says the packet met.
func (n numbers) hits(events []nftrace.Event) (all []place) {
	for _, e := range events {
		switch e.Kind {
		case nftrace.RuleHit:
			all = append(all, place{e.Family, e.Table, e.Chain, n[place{e.Family, e.Table, e.Chain, int(e.Handle)}]})
		case nftrace.Policy:
			all = append(all, place{e.Family, e.Table, e.Chain, 0})
		case nftrace.ChainEnd, nftrace.Passed:
		}
	}
	return all
}

// met is a rule or a policy that the tracer says the packet met. An idle rule may match or not.
type met struct {
	place
	idle bool
}

// stepsOf are those of a way; nil if a condition that the tracer doesn't know leads to several ways that end alike.
func stepsOf(way trace.Way) (all []met) {
	all = []met{}
	for _, s := range way.Steps {
		if s.Assumed == "either way, the packet fares alike" {
			return nil
		}
		if s.Chain == nil || s.Missed != "" || s.Unknown != "" && !strings.HasPrefix(s.Assumed, "either way") {
			continue
		}
		m := met{place{string(s.Chain.Table.Family), s.Chain.Table.Name, s.Chain.Name, 0}, s.Unknown != ""}
		if s.Rule != nil {
			m.number = s.Rule.Number
		}
		all = append(all, m)
	}
	return all
}

// sameSteps reports whether the kernel's hits are these, in order.
func sameSteps(steps []met, hits []place) bool {
	if steps == nil {
		return true
	}
	for _, m := range steps {
		switch {
		case len(hits) > 0 && hits[0] == m.place:
			hits = hits[1:]
		case !m.idle:
			return false
		}
	}
	return len(hits) == 0
}

// sameCounts is sameSteps for counters, which know no order.
func sameCounts(steps []met, counts map[place]int) bool {
	if steps == nil {
		return true
	}
	left := maps.Clone(counts)
	idle := map[place]bool{}
	for _, m := range steps {
		if m.idle {
			idle[m.place] = true
		} else {
			left[m.place]--
		}
	}
	for p, n := range left {
		if n != 0 && (!idle[p] || n < 0) {
			return false
		}
	}
	return true
}

// every are a way and the outcomes of one that is unknown.
func every(ways []trace.Way) (all []trace.Way) {
	for _, w := range ways {
		if len(w.Outcomes) > 0 {
			all = append(all, every(w.Outcomes)...)
		} else {
			all = append(all, w)
		}
	}
	return all
}

// sameEnd says where a way's end differs from what the kernel did; "" if it doesn't.
func sameEnd(way trace.Way, p probe, s seen) string {
	f := way.Packet
	lives := way.Verdict == trace.Accepted || way.Verdict == trace.Redirected || way.Verdict == trace.TProxied ||
		strings.HasPrefix(way.Reason, "nat translates a connection that TPROXY has taken") // which ends its later packets only
	switch {
	case lives != (s.at != ""), lives && f.Local != (s.at == "here"), lives && !f.Local && f.Interface != s.out:
		return "another end"
	case lives && (f.From != s.from || f.To != s.to):
		return "other addresses"
	case lives && f.Mark != s.mark:
		return "another mark"
	case lives && s.connection != "" && !strings.Contains(s.connection, fmt.Sprintf(" mark=%d ", f.CTMark)):
		return "another mark of the connection"
	case way.Verdict == trace.Redirected && way.Port != s.to.Port():
		return "another port"
	case !lives && way.At != nil && way.At.Rule != nil && !sameAnswer(way, p, slices.Contains(s.answers, f.From.Addr())):
		return "dropped or rejected"
	}
	return ""
}

// sameAnswer reports whether the sender is told as the way says. The kernel tells nobody of a reset, and may fail to tell where a
// mark or TPROXY has led the packet.
func sameAnswer(way trace.Way, p probe, answered bool) bool {
	rejected := way.Verdict == trace.Rejected
	f := way.Packet
	astray := f.Mark&routingMarks != 0 || f.Local && !slices.Contains(owns[f.To.Addr().Is6()], f.To.Addr())
	return answered == rejected || rejected && (astray || p.TCPFlags&rst != 0)
}

// describe is a way in words.
func describe(way trace.Way) string {
	var b strings.Builder
	f := way.Packet
	fmt.Fprintf(&b, "%s (%.2g): %s to %s, mark %#x, interface %q, local %v, port %d: %s\n",
		way.Verdict, way.Probability, f.From, f.To, f.Mark, f.Interface, f.Local, way.Port, way.Reason)
	for _, s := range way.Steps {
		if s.Rule == nil && s.Chain == nil {
			fmt.Fprintf(&b, "    %s: %s %s\n", s.Hook, s.Text, s.Effect)
		}
		if s.Rule == nil && s.Chain != nil {
			fmt.Fprintf(&b, "    %s: %s %s %s\n", s.Hook, s.Chain.Table.Name, s.Chain.Name, s.Text)
		}
		if s.Rule != nil && s.Missed == "" {
			fmt.Fprintf(&b, "    %s: %s %s %d: %s [%s] %s %s\n",
				s.Hook, s.Chain.Table.Name, s.Chain.Name, s.Rule.Number, s.Rule.Text, s.Effect, s.Unknown, s.Assumed)
		}
	}
	return b.String()
}

func sorted(counts map[place]int) (all []place) {
	for p, n := range counts {
		all = append(all, slices.Repeat([]place{p}, max(n, 0))...)
	}
	slices.SortFunc(all, func(a, b place) int { return strings.Compare(a.String(), b.String()) })
	return all
}
