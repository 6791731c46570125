package nftables

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
)

// Table is a compiled ruleset: one table for both families.
type Table struct {
	chains []chain // base chains first
	gated  bool
}

type chain struct {
	name  string
	hook  *hook // nil for the mesh's own chains
	rules []rule
}

// hook is where the kernel calls a base chain.
type hook struct {
	chain    rules.Chain
	kind     string // nft's type of the chain
	number   uint32
	name     string
	priority int32
}

// hooks stand for iptables' base chains, in the order and with the priorities of iptables-nft. Like mangle's OUTPUT, a chain
// of type route reroutes a packet whose mark it has changed.
var hooks = []hook{
	{rules.Chain{Table: rules.Raw, Name: rules.Prerouting}, "filter", unix.NF_INET_PRE_ROUTING, "prerouting", -300},
	{rules.Chain{Table: rules.Raw, Name: rules.Output}, "filter", unix.NF_INET_LOCAL_OUT, "output", -300},
	{rules.Chain{Table: rules.Mangle, Name: rules.Prerouting}, "filter", unix.NF_INET_PRE_ROUTING, "prerouting", -150},
	{rules.Chain{Table: rules.Mangle, Name: rules.Output}, "route", unix.NF_INET_LOCAL_OUT, "output", -150},
	{rules.Chain{Table: rules.Nat, Name: rules.Prerouting}, "nat", unix.NF_INET_PRE_ROUTING, "prerouting", -100},
	{rules.Chain{Table: rules.Nat, Name: rules.Output}, "nat", unix.NF_INET_LOCAL_OUT, "output", -100},
}

// gateSet is the set that OpenGate adds an element to and GateOpen looks up. It has room for one, which stands for every
// packet; adding it again does nothing. The kernel and the records have the set by this name.
const (
	gateSet   = "armed"
	gateSize  = 1
	gateFlags = unix.NFT_SET_EVAL
)

// Compile turns a ruleset into the table that does the same for these families and leaves the other alone. Rules that can be
// folded become one with a set, so the number of rules does not grow with lists.
func Compile(rs rules.Ruleset, families []rules.Family) Table {
	c := &compiler{own: rs.Chains, families: families}
	byChain := rs.Folded()
	t := Table{gated: rs.Gated()}
	for i := range hooks {
		if h := &hooks[i]; len(byChain[h.chain]) > 0 {
			t.chains = append(t.chains, chain{c.name(h.chain), h, append(c.onlyOne(), c.compile(byChain[h.chain])...)})
		}
	}
	for _, own := range rs.Chains {
		t.chains = append(t.chains, chain{c.name(own), nil, c.compile(byChain[own])})
	}
	return t
}

type compiler struct {
	own      []rules.Chain
	families []rules.Family
	sets     uint32 // so far
}

// name is the chain's name in the one table. The mesh's own chains keep their names. If several of iptables' tables have a
// chain of that name, only nat's keeps it, as people look for that one.
func (c *compiler) name(ch rules.Chain) string {
	elsewhere := func(o rules.Chain) bool { return o.Name == ch.Name && o.Table != ch.Table }
	if ch.Base() || ch.Table != rules.Nat && slices.ContainsFunc(c.own, elsewhere) {
		return string(ch.Table) + "-" + ch.Name
	}
	return ch.Name
}

// onlyOne is the rule ahead of a base chain that lets the other family pass; none for both families.
func (c *compiler) onlyOne() []rule {
	if len(c.families) != 1 {
		return nil
	}
	r := rule{why: "only " + c.families[0].String() + " is redirected"}
	r.equal(&nft.MetaNfproto, true, []byte{nft.ProtocolOf(c.families[0])})
	r.verdict(nft.Accept, "")
	return []rule{r}
}

// compile makes one rule of a rule without addresses, and of one with addresses a rule for each of their families.
func (c *compiler) compile(all []rules.Rule) []rule {
	var out []rule
	for _, r := range all {
		for _, f := range c.familiesOf(r) {
			out = append(out, c.rule(r, f))
			if _, ok := r.Target.(rules.TProxy); ok { // without a listener TPROXY drops the packet, nft's statement lets it pass
				out = append(out, c.rule(rules.Rule{Chain: r.Chain, Matches: r.Matches, Target: rules.Drop{}, Why: "nothing listens there"}, f))
			}
		}
	}
	return out
}

// both stands for the families of a rule without addresses.
const both rules.Family = 0

// familiesOf are the families of the rules that the rule becomes; none if its list is empty.
func (c *compiler) familiesOf(r rules.Rule) []rules.Family {
	of := slices.DeleteFunc(slices.Clone(c.families), func(f rules.Family) bool { return !r.Concerns(f) })
	if len(of) == 0 || hasAddress(r) {
		return of
	}
	return []rules.Family{both}
}

func hasAddress(r rules.Rule) bool {
	if _, ok := r.Target.(rules.DNAT); ok {
		return true
	}
	return slices.ContainsFunc(r.Matches, func(m rules.Match) bool {
		switch m.(type) {
		case rules.Source, rules.Destination:
			return true
		default:
			return false
		}
	})
}

func (c *compiler) rule(r rules.Rule, f rules.Family) rule {
	out := rule{why: comment(r.Why)}
	if f != both {
		out.equal(&nft.MetaNfproto, false, []byte{nft.ProtocolOf(f)})
	}
	for _, m := range r.Matches {
		c.match(&out, m, f)
	}
	c.target(&out, r, f)
	return out
}

// match adds the condition m. It treats packets that lack what it tests, such as a state ahead of connection tracking, like
// iptables, with one exception: a packet without a socket matches "not of this user" in iptables, and not here.
//
// The exception is harmless. Such a negation occurs only in nat's OUTPUT, for lo, and nat sees only the first packet of a
// connection. What the kernel itself sends (resets, answers to pings, ICMP errors) belongs to existing connections. One packet
// gets here nevertheless: a retransmission on lo for a program that has ended, after connection tracking was told to forget
// the connection. It goes to the proxy, which resets it.
func (c *compiler) match(out *rule, m rules.Match, f rules.Family) {
	switch m := m.(type) {
	case rules.Source:
		c.addresses(out, [2]*nft.Source{&nft.IPSaddr, &nft.IP6Saddr}, f, m.Prefixes, false)
	case rules.Destination:
		c.addresses(out, [2]*nft.Source{&nft.IPDaddr, &nft.IP6Daddr}, f, m.Prefixes, m.Not)
	case rules.InInterface:
		out.equal(&nft.MetaIifname, false, interfaceName(string(m)))
	case rules.OutInterface:
		out.equal(&nft.MetaOifname, false, interfaceName(string(m)))
	case rules.Protocol:
		out.equal(&nft.MetaL4proto, false, []byte{byte(nft.NumberOf(nft.Protocols, string(m)))})
	case rules.SrcPort:
		c.ports(out, &nft.ThSport, []uint16{uint16(m)}, false)
	case rules.DstPort:
		c.ports(out, &nft.ThDport, []uint16{m.Port}, m.Not)
	case rules.DstPorts:
		c.ports(out, &nft.ThDport, m.Ports, m.Not)
	case rules.OwnerUID:
		out.equal(&nft.MetaSkuid, m.Not, native(m.ID))
	case rules.OwnerGID:
		out.equal(&nft.MetaSkgid, m.Not, native(m.ID))
	case rules.Mark:
		out.equal(&nft.MetaMark, m.Not, native(m.Value))
	case rules.ConnMark:
		out.equal(&nft.CTMark, false, native(uint32(m)))
	case rules.CTState:
		out.load(&nft.CTStates)
		out.mask(native(bitsOf(m)))
		out.compare(unix.NFT_CMP_NEQ, native(0))
	case rules.GateOpen:
		out.constant()
		out.lookup(gateSet, 0, false)
	}
}

func (c *compiler) addresses(out *rule, sources [2]*nft.Source, f rules.Family, prefixes []netip.Prefix, not bool) {
	s := sources[0]
	if f == rules.IPv6 {
		s = sources[1]
	}
	var spans []span
	for _, p := range prefixes {
		if rules.Of(p.Addr()) == f {
			spans = append(spans, prefixSpan(p))
		}
	}
	c.sets++
	out.among(s, not, normalize(s.Datatype, spans), c.sets)
}

func (c *compiler) ports(out *rule, s *nft.Source, ports []uint16, not bool) {
	var spans []span
	for _, r := range rules.PortRanges(ports) {
		spans = append(spans, portSpan(r))
	}
	c.sets++
	out.among(s, not, normalize(s.Datatype, spans), c.sets)
}

func bitsOf(list rules.CTState) (all uint32) {
	for _, s := range list {
		all |= nft.NumberOf(nft.States, strings.ToLower(string(s)))
	}
	return all
}

func interfaceName(name string) []byte {
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func network16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func (c *compiler) target(out *rule, r rules.Rule, f rules.Family) {
	switch t := r.Target.(type) {
	case rules.Return:
		out.verdict(nft.Return, "")
	case rules.Accept:
		out.verdict(nft.Accept, "")
	case rules.Drop:
		out.verdict(nft.Drop, "")
	case rules.Jump:
		out.verdict(nft.Jump, c.name(rules.Chain{Table: r.Chain.Table, Name: string(t)}))
	case rules.Redirect:
		out.immediate(reg1, network16(uint16(t)))
		out.add("redir", netlink.Number(unix.NFTA_REDIR_REG_PROTO_MIN, reg1))
	case rules.DNAT:
		out.dnat(t, f)
	case rules.TProxy:
		out.immediate(reg1, network16(t.Port))
		out.add("tproxy", netlink.Number(nft.TProxyFamily, uint32(nft.ProtocolOf(f))), netlink.Number(nft.TProxyRegPort, reg1))
		out.immediate(reg1, native(t.Mark))
		out.store(&nft.MetaMark)
		out.verdict(nft.Accept, "")
	case rules.SetMark:
		out.immediate(reg1, native(uint32(t)))
		out.store(&nft.MetaMark)
	case rules.SaveMark:
		out.load(&nft.MetaMark)
		out.store(&nft.CTMark)
	case rules.RestoreMark:
		out.load(&nft.CTMark)
		out.store(&nft.MetaMark)
	case rules.Zone: // the first zone counts, as with iptables
		out.immediate(reg1, binary.NativeEndian.AppendUint16(nil, uint16(t)))
		out.store(&nft.CTZone)
	case rules.OpenGate:
		out.constant()
		out.add("dynset", netlink.Text(unix.NFTA_DYNSET_SET_NAME, gateSet), netlink.Number(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_ADD), netlink.Number(unix.NFTA_DYNSET_SREG_KEY, reg1))
	}
}

func (r *rule) dnat(t rules.DNAT, f rules.Family) {
	r.immediate(reg1, t.Addr.AsSlice())
	attributes := []netlink.Attribute{
		netlink.Number(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT), netlink.Number(unix.NFTA_NAT_FAMILY, uint32(nft.ProtocolOf(f))),
		netlink.Number(unix.NFTA_NAT_REG_ADDR_MIN, reg1),
	}
	if t.Port != 0 {
		r.immediate(reg2, network16(t.Port))
		attributes = append(attributes, netlink.Number(unix.NFTA_NAT_REG_PROTO_MIN, reg2))
	}
	r.add("nat", attributes...)
}

// maxComment is the maximum length of a comment (NFTNL_UDATA_COMMENT_MAXLEN less the final NUL).
const maxComment = 127

// comment turns a rule's reason into what nft takes between quotes. It cuts a long one at a word.
func comment(why string) string {
	why = strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r < ' ':
			return ' '
		}
		return r
	}, why)
	if len(why) <= maxComment {
		return why
	}
	why = why[:maxComment-len("...")]
	if i := strings.LastIndexByte(why, ' '); i > 0 {
		why = why[:i]
	}
	return why + "..."
}
