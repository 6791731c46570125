// Package advice says in one sentence what decided over a packet, and what to change for it to go another way. It is pure.
package advice

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/trace"
)

// Of returns the sentence for a walk's result. Of several ways it speaks about the worst: one on which the packet ends, else one that is
// not known, else the most likely one.
//
// It adds what becomes of the answers if something would end them.
func Of(ns *trace.Namespace, r trace.Result) string {
	w := worst(r.Ways)
	text := describe(ns, r.Packet, w) + answers(ns, r.Packet, w)
	switch {
	case len(r.Ways) > 1 && w.Verdict == trace.Unknown:
		return fmt.Sprintf("on one of %d ways %s", len(r.Ways), text)
	case len(r.Ways) > 1:
		return fmt.Sprintf("on %s %s", share(r.Ways, w), text)
	}
	return text
}

// answers says if the answers to a packet that passes, or that a policy drops, would end in this namespace. NAT has turned them round by
// the time that they come to FORWARD or INPUT.
func answers(ns *trace.Namespace, p trace.Packet, w trace.Way) string {
	dropped := w.Verdict == trace.Dropped && w.At != nil && w.At.Policy()
	if !dropped && w.Verdict != trace.Accepted || w.Packet.Local || w.Packet.Interface == "" || !p.Src.Addr().IsValid() || p.State > trace.CTNew {
		return ""
	}
	answer := trace.Packet{
		Direction: trace.In, Interface: w.Packet.Interface, ToInterface: p.Interface, Protocol: p.Protocol, State: trace.CTEstablished,
		Src: w.Packet.To, Dst: p.Src, CTMark: w.Packet.CTMark, TCPFlags: synAck, ICMPType: echoReply[p.ICMPType],
	}
	r, err := trace.Walk(ns, answer)
	if err != nil || len(r.Ways) == 0 {
		return ""
	}
	back := worst(r.Ways)
	if back.Verdict != trace.Dropped && back.Verdict != trace.Rejected {
		return ""
	}
	return "; its answers would be " + ended(ns, r.Packet, back)
}

const synAck = 0x12

// echoReply answers an echo request.
var echoReply = map[uint8]uint8{8: 0, 128: 129}

// severity orders the outcomes.
var severity = map[trace.Outcome]int{trace.Dropped: 3, trace.Rejected: 3, trace.Unknown: 2}

func worst(ways []trace.Way) trace.Way {
	w := ways[0]
	for _, other := range ways[1:] {
		a, b := severity[w.Verdict], severity[other.Verdict]
		if b > a || b == a && other.Probability > w.Probability {
			w = other
		}
	}
	return w
}

// share says on how many ways the packet fares like this one.
func share(ways []trace.Way, like trace.Way) string {
	n, p := 0, 0.0
	for _, w := range ways {
		if w.Verdict == like.Verdict {
			n, p = n+1, p+w.Probability
		}
	}
	if n == len(ways) {
		return fmt.Sprintf("each of %d ways; the likeliest, %s:", n, Percent(like.Probability))
	}
	return fmt.Sprintf("%d of %d ways, which take %s of the connections,", n, len(ways), Percent(p))
}

// Percent prints a probability: "50 %".
func Percent(p float64) string { return fmt.Sprintf("%.3g %%", 100*p) }

func describe(ns *trace.Namespace, p trace.Packet, w trace.Way) string {
	switch w.Verdict {
	case trace.Redirected:
		return redirected(p, w)
	case trace.TProxied:
		return fmt.Sprintf("handed to the transparent listener at port %d by %s%s", w.Port, by(w.At), bypass(p, w))
	case trace.Dropped, trace.Rejected:
		return ended(ns, p, w)
	case trace.Unknown:
		return unknown(w)
	case trace.Accepted:
	}
	return accepted(w)
}

func redirected(p trace.Packet, w trace.Way) string {
	return fmt.Sprintf("redirected to %s %d by %s%s", listener(w), w.Port, by(w.At), bypass(p, w))
}

// listener names the listener of a port by the mesh whose rule decided.
func listener(w trace.Way) string {
	d, ok := meshOf(w)
	switch {
	case ok && w.Port == d.Proxy.Outbound:
		return "the proxy's outbound listener"
	case ok && w.Port == d.Proxy.Inbound:
		return "the proxy's inbound listener"
	case ok && w.Port == d.Proxy.DNS:
		return "the proxy's DNS listener"
	}
	return "port"
}

// meshOf is the mesh whose chain decided, or called the chain that did.
func meshOf(w trace.Way) (mesh.Dialect, bool) {
	if w.At == nil || w.At.Rule == nil {
		return mesh.Dialect{}, false
	}
	c := w.At.Chain
	if c.Table.Origin == "nft" { // detour's table: the chains have iptables' names
		for _, table := range rules.Tables {
			if d, ok := mesh.WithChain(rules.Chain{Table: table, Name: strings.TrimPrefix(c.Name, string(table)+"-")}); ok {
				return d, true
			}
		}
		return mesh.Dialect{}, false
	}
	return mesh.WithChain(rules.Chain{Table: rules.Table(c.Table.Name), Name: c.Name})
}

// bypass says how to keep such a connection away from the proxy.
func bypass(p trace.Packet, w trace.Way) string {
	d, ok := meshOf(w)
	if !ok {
		return ""
	}
	setting := d.Exclusions.OutboundPorts
	if w.Port != d.Proxy.Outbound {
		setting = d.Exclusions.InboundPorts
	}
	if w.Port == d.Proxy.DNS || setting == (mesh.Setting{}) {
		return ""
	}
	where := "the pod's annotation " + setting.Annotation
	if setting.Field != "" {
		where = fmt.Sprintf("%s of %s or to %s", setting.Field, d.Config, where)
	}
	return fmt.Sprintf("; to bypass the proxy, add %d to %s and restart the pod", p.Dst.Port(), where)
}

// by names what decided.
func by(d *trace.Decision) string {
	switch {
	case d == nil || d.Chain == nil:
		return "routing"
	case d.Rule == nil:
		return fmt.Sprintf("the policy of %s in table %s", d.Chain.Name, table(d.Chain))
	}
	return fmt.Sprintf("%s rule %d of table %s", d.Chain.Name, d.Rule.Number, table(d.Chain))
}

// table names a table as its program's users do.
func table(c *trace.Chain) string {
	if c.Table.Origin == "nft" {
		return fmt.Sprintf("%s %s", c.Table.Family, c.Table.Name)
	}
	return c.Table.Name
}

func ended(ns *trace.Namespace, p trace.Packet, w trace.Way) string {
	verb := string(w.Verdict)
	switch {
	case w.At == nil || w.At.Chain == nil:
		return verb + ": " + w.Reason
	case w.At.Policy():
		command, links := accept(ns, p, w)
		return fmt.Sprintf("%s by %s: no rule accepts %s; `%s` would", verb, by(w.At), links, command)
	case w.Reason != "":
		return fmt.Sprintf("%s at %s: %s", verb, by(w.At), w.Reason)
	}
	text := fmt.Sprintf("%s by %s (%s)", verb, by(w.At), w.At.Text)
	comment := w.At.Rule.Comment
	switch {
	case strings.Contains(comment, "has no endpoints"), strings.Contains(comment, "has no local endpoints"):
		return fmt.Sprintf("%s: %s; look at the readiness of the Service's pods", text, comment)
	case comment != "":
		text += ": " + comment
	}
	return text + "; change that rule, or accept the packet ahead of it"
}

// accept is the command that adds a rule for such packets, and how it names their interfaces.
func accept(ns *trace.Namespace, p trace.Packet, w trace.Way) (command, links string) {
	c := w.At.Chain
	in, out := interfaces(p, w)
	to := destination(ns, w)
	if c.Table.Origin == "nft" {
		command = fmt.Sprintf("nft add rule %s %s %s", c.Table.Family, c.Table.Name, c.Name)
		command += words(" iifname %q", in) + words(" oifname %q", outOnly(in, out)) + fmt.Sprintf(" %s daddr %s accept", ipOf(to.Addr()), short(to))
		return command, cmp.Or(strings.TrimSpace(words("iifname %q", in)+words(" oifname %q", out)), "it")
	}
	program := "iptables"
	if c.Table.Family == trace.IP6 {
		program = "ip6tables"
	}
	if c.Table.Name != "filter" {
		program += " -t " + c.Table.Name
	}
	command = fmt.Sprintf("%s -A %s", program, c.Name) + words(" -i %s", in) + words(" -o %s", outOnly(in, out)) + " -d " + short(to) + " -j ACCEPT"
	return command, cmp.Or(strings.TrimSpace(words("-i %s", in)+words(" -o %s", out)), "it")
}

// outOnly leaves the out interface away where the in interface says enough.
func outOnly(in, out string) string {
	if in != "" {
		return ""
	}
	return out
}

func words(format, link string) string {
	if link == "" {
		return ""
	}
	return fmt.Sprintf(format, link)
}

// interfaces are those that a rule of the chain that decided could match.
func interfaces(p trace.Packet, w trace.Way) (in, out string) {
	hook := w.At.Chain.Base.Hook
	if p.Direction == trace.In && hook != trace.Output && hook != trace.Postrouting {
		in = p.Interface
	}
	if hook == trace.Forward || hook == trace.Output || hook == trace.Postrouting {
		out = w.Packet.Interface
	}
	return in, out
}

// destination is the network that the packet is for: that of its route, else its address.
func destination(ns *trace.Namespace, w trace.Way) netip.Prefix {
	to := w.Packet.To.Addr()
	best := netip.PrefixFrom(to, to.BitLen())
	if w.Packet.Local {
		return best
	}
	for _, r := range ns.Routing.Routes {
		if r.Type == "unicast" && r.Dst.Bits() > 0 && r.Dst.Contains(to) && (best.Bits() == to.BitLen() || r.Dst.Bits() > best.Bits()) {
			best = r.Dst
		}
	}
	return best
}

func ipOf(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}

// short leaves the length of a single address away.
func short(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func unknown(w trace.Way) string {
	text := "not known: " + cmp.Or(w.Reason, "a rule is not known")
	if w.At != nil && w.At.Chain != nil {
		text += fmt.Sprintf(" (%s: %s)", by(w.At), w.At.Text)
	}
	var all []string
	for _, o := range w.Outcomes {
		all = append(all, fmt.Sprintf("if %s, %s", o.Assumes, outcome(o)))
	}
	if len(all) > 0 {
		text += "; " + strings.Join(all, "; ")
	}
	return text
}

func outcome(o trace.Way) string {
	if o.Verdict == trace.Unknown {
		return "that is not known either"
	}
	return fmt.Sprintf("it is %s by %s", o.Verdict, by(o.At))
}

func accepted(w trace.Way) string {
	where := "leaves"
	if w.Packet.Interface != "" {
		where = "leaves by " + w.Packet.Interface
	}
	if w.Packet.Local {
		where = "is delivered here"
	}
	text := fmt.Sprintf("accepted: the packet %s, to %s", where, cmp.Or(trace.Endpoint(w.Packet.To), "an address that is not known"))
	if w.Packet.SNAT && w.Packet.From.Addr().IsValid() {
		text += " as coming from " + w.Packet.From.Addr().String()
	}
	if w.At != nil && w.At.Rule != nil {
		text += fmt.Sprintf("; %s decided (%s)", by(w.At), w.At.Text)
	}
	return text
}
