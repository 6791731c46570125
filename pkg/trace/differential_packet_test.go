package trace_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/trace"
)

// probe is a packet with what the tracer need not know.
type probe struct {
	trace.Packet
	id       uint16 // of an ICMP echo
	seq, ack uint32 // of TCP
}

// sentinel is the packet that the world's table knows.
var sentinel = probe{Packet: trace.Packet{Protocol: unix.IPPROTO_UDP, Src: sentinelAddr, Dst: sentinelAddr}}

var sentinelAddr = netip.MustParseAddrPort("127.0.0.9:9")

// bytes is the packet on the wire.
func (p probe) bytes() []byte {
	transport := p.transport()
	src, dst := p.Src.Addr(), p.Dst.Addr()
	if at := checksumAt[p.Protocol]; at != 0 {
		sum := checksum(transport, p.pseudo(len(transport)))
		if p.Protocol == unix.IPPROTO_UDP && sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(transport[at:], sum)
	}
	if dst.Is6() {
		b := []byte{0x60, 0, 0, 0, 0, 0, p.Protocol, 64}
		binary.BigEndian.PutUint16(b[4:], uint16(len(transport)))
		return append(append(append(b, src.AsSlice()...), dst.AsSlice()...), transport...)
	}
	b := []byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, p.Protocol, 0, 0}
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(transport)))
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], checksum(b, 0))
	return append(b, transport...)
}

// checksumAt is where transport headers have their checksum.
var checksumAt = map[uint8]int{unix.IPPROTO_TCP: 16, unix.IPPROTO_UDP: 6, unix.IPPROTO_ICMP: 2, unix.IPPROTO_ICMPV6: 2}

func (p probe) transport() []byte {
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.Src.Port()), p.Dst.Port())
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(ports, p.seq), p.ack)
		return append(b, 0x50, p.TCPFlags, 0xff, 0xff, 0, 0, 0, 0)
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return []byte{p.ICMPType, p.ICMPCode, 0, 0, byte(p.id >> 8), byte(p.id), 0, 1, 'd', 'a', 't', 'a'}
	}
	return append(ports, 0, 12, 0, 0, 'd', 'a', 't', 'a')
}

// pseudo is the sum of the pseudo header.
func (p probe) pseudo(length int) uint32 {
	if p.Protocol == unix.IPPROTO_ICMP {
		return 0
	}
	return sum(append(p.Src.Addr().AsSlice(), p.Dst.Addr().AsSlice()...)) + uint32(p.Protocol) + uint32(length)
}

func sum(b []byte) (total uint32) {
	for i := 0; i+1 < len(b); i += 2 {
		total += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		total += uint32(b[len(b)-1]) << 8
	}
	return total
}

func checksum(b []byte, more uint32) uint16 {
	total := sum(b) + more
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}

// The addresses that packets have and rules name. Those of the second list are the node's.
var (
	remotes = map[bool][]netip.Addr{
		false: addrs("10.1.0.2 10.1.0.3 10.1.200.9 10.2.0.2 10.2.0.3 10.2.200.9 1.1.1.1 8.8.8.8 10.96.0.10"),
		true:  addrs("fd01::2 fd01::3 fd01:0:0:8::9 fd02::2 fd02::3 fd02:0:0:8::9 2001:db8::1 fd96::10"),
	}
	owns = map[bool][]netip.Addr{false: addrs("10.1.0.1 10.2.0.1 127.0.0.1"), true: addrs("fd01::1 fd02::1 ::1")}
)

// tuple is how /proc/net/nf_conntrack begins the packet's connection.
func (p probe) tuple() string {
	src, dst := p.Src.Addr(), p.Dst.Addr()
	addrs := fmt.Sprintf("src=%s dst=%s ", src, dst)
	if src.Is6() {
		addrs = fmt.Sprintf("src=%s dst=%s ", src.StringExpanded(), dst.StringExpanded())
	}
	if echo(p.Protocol) {
		return fmt.Sprintf("%stype=%d code=%d id=%d", addrs, p.ICMPType, p.ICMPCode, p.id)
	}
	return fmt.Sprintf("%ssport=%d dport=%d", addrs, p.Src.Port(), p.Dst.Port())
}

func echo(protocol uint8) bool {
	return protocol == unix.IPPROTO_ICMP || protocol == unix.IPPROTO_ICMPV6
}

// first reports whether the packet begins a connection as a proper one does.
func (p probe) first() bool { return p.Protocol != unix.IPPROTO_TCP || p.TCPFlags == syn }

// answer is the peer's answer to the first packet of a connection.
func (p probe) answer(s seen) probe {
	a := p
	a.Src, a.Dst, a.Mark = p.Dst, p.Src, 0
	a.Direction, a.Interface = trace.In, s.out
	if s.at == "here" {
		a.Direction = trace.Out
	}
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		a.TCPFlags, a.seq, a.ack = syn|ack, 5000, p.seq+1
	case unix.IPPROTO_ICMP:
		a.ICMPType = 0
	case unix.IPPROTO_ICMPV6:
		a.ICMPType = 129
	}
	return a
}

// later is the next packet of an answered connection.
func (p probe) later() probe {
	p.State = trace.CTEstablished
	if p.Protocol == unix.IPPROTO_TCP {
		p.TCPFlags, p.seq, p.ack = ack, p.seq+1, 5001
	}
	return p
}

// The flags of TCP.
const (
	fin = 1
	syn = 2
	rst = 4
	ack = 16
)

// packet is a random packet with this port or number of its own.
func (d dice) packet(v6 bool, number uint16) probe {
	p := probe{id: number, seq: 1000}
	src, dst := pick(d, remotes[v6]), pick(d, remotes[v6])
	switch d.IntN(5) {
	case 0, 1: // out
		p.Direction, p.Src = trace.Out, netip.AddrPort{}
		p.UID, p.GID = pick(d, users), pick(d, users)
		if d.oneIn(4) {
			p.Mark = pick(d, []uint32{1, 0x10, 0x4000})
		}
		src = owns[v6][1]
		if strings.HasPrefix(dst.String(), "10.1.") || strings.HasPrefix(dst.String(), "fd01:") {
			src = owns[v6][0]
		}
		if d.oneIn(3) {
			dst = pick(d, owns[v6])
			src = dst
		}
	case 2: // in
		p.Direction, p.Interface = trace.In, pick(d, sides)
		dst = pick(d, owns[v6][:2])
	default: // through
		p.Direction, p.Interface = trace.In, pick(d, sides)
	}
	p.Protocol = pick(d, []uint8{unix.IPPROTO_TCP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP})
	port := pick(d, []uint16{53, 80, 443, 7000, 7000, 8080, 15001, 3000})
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		p.TCPFlags = syn
		if d.oneIn(8) {
			p.TCPFlags = pick(d, []uint8{ack, fin | ack, rst, syn | fin, syn | rst})
		}
		if p.TCPFlags != ack && p.TCPFlags != syn {
			p.State = trace.CTInvalid
		}
	case unix.IPPROTO_ICMP:
		p.ICMPType = 8
		if v6 {
			p.Protocol, p.ICMPType = unix.IPPROTO_ICMPV6, 128
		}
		port, number = 0, 0
	}
	p.Src, p.Dst = netip.AddrPortFrom(src, number), netip.AddrPortFrom(dst, port)
	return p
}

var (
	users = []uint32{0, 1000, 1337}
	sides = []string{"left0", "right0"}
)

func addrs(text string) (all []netip.Addr) {
	for a := range strings.FieldsSeq(text) {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

func (p probe) String() string {
	where := "out, user " + fmt.Sprint(p.UID) + ", group " + fmt.Sprint(p.GID)
	if p.Direction == trace.In {
		where = "in by " + p.Interface
	}
	return fmt.Sprintf("packet %s: protocol %d from %s to %s, flags %#x, mark %#x, connection's mark %#x, state %d, number %d",
		where, p.Protocol, p.Src, p.Dst, p.TCPFlags, p.Mark, p.CTMark, p.State, p.id)
}
