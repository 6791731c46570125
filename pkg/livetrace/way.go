package livetrace

import (
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/nftrace"
	"github.com/detour-cni/detour/pkg/trace"
)

// teller tells a packet's way by its events.
type teller struct {
	ns      *trace.Namespace
	conn    nft.Conn
	handles map[*trace.Chain][]uint64
	way     trace.Way
	hook    trace.Hook
	depth   map[*trace.Chain]int // of the chains that the base chain at hand has called
	seen    *nftrace.Packet
	mark    uint32
}

func wayOf(ns *trace.Namespace, events []nftrace.Event) (trace.Way, error) {
	conn, err := nft.Open()
	if err != nil {
		return trace.Way{}, err
	}
	defer conn.Close()
	t := teller{ns: ns, conn: conn, handles: map[*trace.Chain][]uint64{}}
	for _, e := range events {
		if err := t.tell(e); err != nil {
			return trace.Way{}, err
		}
	}
	t.finish(events)
	return t.way, nil
}

// tell adds one event as a step.
func (t *teller) tell(e nftrace.Event) error {
	if e.Kind == nftrace.Passed {
		t.hook = map[string]trace.Hook{"input": trace.Input, "postrouting": trace.Postrouting}[e.Chain]
		t.changes(e)
		return nil
	}
	c := t.chain(e)
	if c == nil {
		return fmt.Errorf("table %s %s chain %s has come since the rules were read: try again", e.Family, e.Table, e.Chain)
	}
	if c.Base != nil && (e.Packet != nil || t.depth == nil) {
		t.hook, t.depth = c.Base.Hook, map[*trace.Chain]int{}
	}
	t.changes(e)
	s := trace.Step{Hook: t.hook, Chain: c, Depth: t.depth[c]}
	switch e.Kind {
	case nftrace.RuleHit:
		rule, err := t.rule(c, e.Handle)
		if err != nil {
			return err
		}
		s.Rule = rule
		if to := c.Table.Chain(e.Verdict.Chain); to != nil {
			t.depth[to] = t.depth[c] + 1
		}
	case nftrace.Policy:
		s.Text = "policy " + map[string]string{"accept": "ACCEPT", "drop": "DROP"}[e.Verdict.Code]
	case nftrace.ChainEnd, nftrace.Passed:
		return nil
	}
	t.way.Steps = append(t.way.Steps, s)
	t.decide(e, s)
	return nil
}

func (t *teller) chain(e nftrace.Event) *trace.Chain {
	for _, table := range t.ns.Tables {
		if string(table.Family) == e.Family && table.Name == e.Table && table.Origin != "iptables-legacy" {
			return table.Chain(e.Chain)
		}
	}
	return nil
}

// rule finds a rule by its handle: nft's JSON has the handles, iptables-save only the order.
func (t *teller) rule(c *trace.Chain, handle uint64) (*trace.Rule, error) {
	rules, err := c.Rules()
	if err != nil {
		return nil, err
	}
	handles, ok := t.handles[c]
	if !ok {
		family := map[trace.Family]byte{trace.IP: unix.NFPROTO_IPV4, trace.IP6: unix.NFPROTO_IPV6, trace.Inet: unix.NFPROTO_INET, trace.Netdev: unix.NFPROTO_NETDEV}
		err := t.conn.Rules(family[c.Table.Family], c.Table.Name, c.Name, func(f netlink.Fields) {
			if handle := f[unix.NFTA_RULE_HANDLE]; len(handle) == 8 {
				handles = append(handles, binary.BigEndian.Uint64(handle))
			}
		})
		if err != nil {
			return nil, err
		}
		t.handles[c] = handles
	}
	for i, h := range handles {
		if h == handle && i < len(rules) {
			return rules[i], nil
		}
	}
	return nil, fmt.Errorf("table %s %s chain %s has changed since its rules were read: try again", c.Table.Family, c.Table.Name, c.Name)
}

// changes adds to the last step what has changed since: a mark, or what NAT translated.
func (t *teller) changes(e nftrace.Event) {
	var effect string
	add := func(format string, args ...any) {
		if effect != "" {
			effect += ", "
		}
		effect += fmt.Sprintf(format, args...)
	}
	if e.Mark != t.mark {
		add("mark becomes %#x", e.Mark)
		t.mark = e.Mark
	}
	if e.Packet != nil {
		if t.seen != nil && t.seen.To != e.Packet.To {
			add("destination becomes %s", e.Packet.To)
		}
		if t.seen != nil && t.seen.From != e.Packet.From {
			add("source becomes %s", e.Packet.From)
		}
		t.seen = e.Packet
	}
	if n := len(t.way.Steps); n > 0 && effect != "" {
		t.way.Steps[n-1].Effect = effect
	}
}

// decide remembers what decided: what ended the packet, else the last rule that accepted it.
func (t *teller) decide(e nftrace.Event, s trace.Step) {
	switch e.Verdict.Code {
	case "drop", "stolen":
		t.way.Verdict, t.way.At = trace.Dropped, s.Decision()
	case "queue":
		t.way.Verdict, t.way.At, t.way.Reason = trace.Unknown, s.Decision(), "the rule hands the packet to a program, which decides"
	case "accept", "return":
		if s.Rule != nil && t.way.Verdict == "" {
			t.way.At = s.Decision()
		}
	}
}

// finish says where the packet ended that nothing dropped.
func (t *teller) finish(events []nftrace.Event) {
	first, last := final(events)
	w := &t.way
	w.Probability = 1
	w.Packet = trace.Final{From: last.From, To: last.To, Mark: t.mark, DNAT: first.To != last.To, SNAT: first.From != last.From}
	w.Packet.Local = t.hook == trace.Input || t.hook == trace.Prerouting || last.OIF == loopback
	if link, err := net.InterfaceByIndex(int(last.OIF)); err == nil && !w.Packet.Local {
		w.Packet.Interface = link.Name
	}
	if w.Verdict != "" {
		return
	}
	w.Verdict = trace.Accepted
	for _, s := range w.Steps { // what translated the destination decided more than who let it pass
		kind := translation(s.Rule)
		if kind != 0 {
			w.At = s.Decision()
		}
		if kind == trace.Redirect {
			w.Verdict, w.Port = trace.Redirected, last.To.Port()
		}
	}
}

// translation is how a rule translates the destination; 0 if it does not.
func translation(r *trace.Rule) trace.NATKind {
	if r == nil {
		return 0
	}
	for _, s := range r.Statements {
		if n, ok := s.(trace.NAT); ok && (n.Kind == trace.DNAT || n.Kind == trace.Redirect) {
			return n.Kind
		}
	}
	return 0
}
