package conns

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// Tuple is one direction of a connection.
type Tuple struct {
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
}

// Flow is an entry of the kernel's connection tracking. Connection tracking knows neither user nor process.
type Flow struct {
	Protocol string `json:"protocol"` // tcp or udp
	// Original is what the client sent, Reply what the answers look like: its source is where the connection really went.
	Original Tuple `json:"original"`
	Reply    Tuple `json:"reply"`
	// State is TCP's, as /proc/net/nf_conntrack prints it; empty for UDP.
	State  string   `json:"state,omitempty"`
	Status []string `json:"status"`
	// Expires is in how many seconds the kernel forgets the entry unless a packet comes.
	Expires uint32     `json:"expires"`
	Mark    uint32     `json:"mark"`
	Zone    uint16     `json:"zone"`
	Sent    Counters   `json:"sent,omitzero"`    // zero unless net.netfilter.nf_conntrack_acct is on
	Replied Counters   `json:"replied,omitzero"` // zero unless net.netfilter.nf_conntrack_acct is on
	Start   *time.Time `json:"start,omitempty"`  // nil unless net.netfilter.nf_conntrack_timestamp is on
}

// flowKey is by what the kernel tells entries apart.
type flowKey struct {
	protocol string
	original Tuple
	zone     uint16
}

func (f Flow) key() flowKey { return flowKey{f.Protocol, f.Original, f.Zone} }

// Counters are those of one direction.
type Counters struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// seenReply is set once an answer has come.
const seenReply = "seen-reply"

// statusNames are those of the bits of enum ip_conntrack_status that say something to a reader.
var statusNames = []struct {
	bit  uint32
	name string
}{
	{1 << 1, seenReply},
	{1 << 2, "assured"},
	{1 << 4, "source-nat"},
	{1 << 5, "destination-nat"},
	{1 << 9, "dying"},
	{1 << 14, "offloaded"},
}

func parseStatus(bits uint32) []string {
	names := []string{}
	for _, n := range statusNames {
		if bits&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return names
}

// tcpStates are enum tcp_conntrack's, under the names that the kernel prints.
var tcpStates = []string{"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT",
	"CLOSE", "SYN_SENT2"}

// The attributes of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaTupleOrig      = 1
	ctaTupleReply     = 2
	ctaStatus         = 3
	ctaProtoInfo      = 4
	ctaTimeout        = 7
	ctaMark           = 8
	ctaCountersOrig   = 9
	ctaCountersReply  = 10
	ctaZone           = 18
	ctaTimestamp      = 20
	ctaTupleIP        = 1
	ctaTupleProto     = 2
	ctaIPv4Source     = 1
	ctaIPv4Dest       = 2
	ctaIPv6Source     = 3
	ctaIPv6Dest       = 4
	ctaProtoNumber    = 1
	ctaProtoSource    = 2
	ctaProtoDest      = 3
	ctaInfoTCP        = 1
	ctaTCPState       = 1
	ctaCountPackets   = 1
	ctaCountBytes     = 2
	ctaTimestampStart = 1
)

// nfgenmsg is the size of struct nfgenmsg, with which the body of every message begins.
const nfgenmsg = 4

var protocols = map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}

// parseFlow reads the body of a message of connection tracking. ok is false for one that is malformed, and for any protocol but
// TCP and UDP: nothing else is redirected.
func parseFlow(body []byte) (f Flow, ok bool) {
	if len(body) < nfgenmsg {
		return f, false
	}
	a := netlink.Parse(body[nfgenmsg:])
	var number, again byte
	if f.Original, number, ok = parseTuple(a[ctaTupleOrig]); !ok {
		return f, false
	}
	if f.Reply, again, ok = parseTuple(a[ctaTupleReply]); !ok || again != number || protocols[number] == "" {
		return f, false
	}
	f.Protocol = protocols[number]
	f.Expires, f.Mark = a.Number(ctaTimeout), a.Number(ctaMark)
	f.Status = parseStatus(a.Number(ctaStatus))
	if zone := a[ctaZone]; len(zone) == 2 {
		f.Zone = binary.BigEndian.Uint16(zone)
	}
	info := netlink.Parse(a[ctaProtoInfo])
	tcp := netlink.Parse(info[ctaInfoTCP])
	if state := tcp[ctaTCPState]; len(state) == 1 && int(state[0]) < len(tcpStates) {
		f.State = tcpStates[state[0]]
	}
	f.Sent, f.Replied = parseCounters(a[ctaCountersOrig]), parseCounters(a[ctaCountersReply])
	times := netlink.Parse(a[ctaTimestamp])
	if ns := number64(times[ctaTimestampStart]); ns != 0 {
		start := time.Unix(0, int64(ns))
		f.Start = &start
	}
	return f, true
}

func parseTuple(b []byte) (t Tuple, protocol byte, ok bool) {
	a := netlink.Parse(b)
	ip, proto := netlink.Parse(a[ctaTupleIP]), netlink.Parse(a[ctaTupleProto])
	source, ok1 := netip.AddrFromSlice(slices.Concat(ip[ctaIPv4Source], ip[ctaIPv6Source]))
	dest, ok2 := netip.AddrFromSlice(slices.Concat(ip[ctaIPv4Dest], ip[ctaIPv6Dest]))
	number, from, to := proto[ctaProtoNumber], proto[ctaProtoSource], proto[ctaProtoDest]
	if !ok1 || !ok2 || len(number) != 1 || len(from) != 2 || len(to) != 2 {
		return t, 0, false
	}
	return Tuple{
		netip.AddrPortFrom(source, binary.BigEndian.Uint16(from)),
		netip.AddrPortFrom(dest, binary.BigEndian.Uint16(to)),
	}, number[0], true
}

func parseCounters(b []byte) Counters {
	a := netlink.Parse(b)
	return Counters{number64(a[ctaCountPackets]), number64(a[ctaCountBytes])}
}

func number64(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}
