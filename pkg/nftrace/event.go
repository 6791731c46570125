package nftrace

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// Kind is what happened to a packet.
type Kind uint8

// The packet matched all of a rule, came to a chain's end, got a base chain's policy, or has passed the last chain of INPUT or
// POSTROUTING.
const (
	RuleHit Kind = iota + 1
	ChainEnd
	Policy
	Passed
)

// Event is one step of a packet. A rule that the packet did not match is no step.
type Event struct {
	ID           uint32 // the packet's; another one once it comes back over lo
	Kind         Kind
	Family       string // the table's in nft's words, such as inet or ip
	Table, Chain string
	Handle       uint64  // the rule's, if one was hit
	Verdict      Verdict // the rule's, or the base chain's policy
	Mark         uint32
	Packet       *Packet // only the first event in each base chain has it
}

// Packet is what the headers say of a packet at the time of an event.
type Packet struct {
	Protocol uint8          // of the transport layer
	From, To netip.AddrPort // with port 0 if the protocol has none
	IIF, OIF uint32         // the interfaces' indices; 0 if the hook has none
}

// Verdict is accept, drop, continue, return, queue, stolen, or jump and goto with a chain.
type Verdict struct{ Code, Chain string }

var verdicts = map[int32]string{
	0: "drop", 1: "accept", 2: "stolen", 3: "queue", 4: "repeat", 5: "accept",
	unix.NFT_CONTINUE: "continue", unix.NFT_BREAK: "break", unix.NFT_JUMP: "jump", unix.NFT_GOTO: "goto", unix.NFT_RETURN: "return",
}

var families = map[byte]string{
	unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6",
	unix.NFPROTO_ARP: "arp", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_NETDEV: "netdev",
}

// decode reads a trace message's body; false if it is cut off.
func decode(body []byte) (Event, bool) {
	if len(body) < 4 { // struct nfgenmsg
		return Event{}, false
	}
	f := netlink.Parse(body[4:])
	e := Event{
		ID: f.Number(unix.NFTA_TRACE_ID), Kind: ChainEnd,
		Family: families[body[0]], Table: f.Text(unix.NFTA_TRACE_TABLE), Chain: f.Text(unix.NFTA_TRACE_CHAIN),
		Mark: f.Number(unix.NFTA_TRACE_MARK), Packet: packet(&f),
	}
	// Kernels don't agree on the type of the rules that return, and of the end of a chain.
	if handle := f[unix.NFTA_TRACE_RULE_HANDLE]; len(handle) == 8 {
		e.Kind, e.Handle = RuleHit, binary.BigEndian.Uint64(handle)
	}
	verdict := netlink.Parse(f[unix.NFTA_TRACE_VERDICT])
	e.Verdict = Verdict{verdictOf(verdict.Number(unix.NFTA_VERDICT_CODE)), verdict.Text(unix.NFTA_VERDICT_CHAIN)}
	if f.Number(unix.NFTA_TRACE_TYPE) == unix.NFT_TRACETYPE_POLICY {
		e.Kind, e.Verdict.Code = Policy, verdictOf(f.Number(unix.NFTA_TRACE_POLICY))
	}
	return e, e.Table != ""
}

func verdictOf(code uint32) string {
	v := int32(code)
	if v >= 0 {
		v &= 0xff // above it are a queue's number or an error
	}
	if name := verdicts[v]; name != "" {
		return name
	}
	return strconv.Itoa(int(v))
}

// packet reads the headers; nil if there are none.
func packet(f *netlink.Fields) *Packet {
	network, transport := f[unix.NFTA_TRACE_NETWORK_HEADER], f[unix.NFTA_TRACE_TRANSPORT_HEADER]
	p := Packet{IIF: f.Number(unix.NFTA_TRACE_IIF), OIF: f.Number(unix.NFTA_TRACE_OIF)}
	var from, to []byte
	switch {
	case len(network) >= 20 && network[0]>>4 == 4:
		p.Protocol, from, to = network[9], network[12:16], network[16:20]
	case len(network) >= 40 && network[0]>>4 == 6:
		p.Protocol, from, to = network[6], network[8:24], network[24:40]
	default:
		return nil
	}
	var ports [2]uint16
	if hasPorts[p.Protocol] && len(transport) >= 4 {
		ports = [2]uint16{binary.BigEndian.Uint16(transport), binary.BigEndian.Uint16(transport[2:])}
	}
	source, _ := netip.AddrFromSlice(from)
	destination, _ := netip.AddrFromSlice(to)
	p.From, p.To = netip.AddrPortFrom(source, ports[0]), netip.AddrPortFrom(destination, ports[1])
	return &p
}
