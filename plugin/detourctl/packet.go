package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/trace"
)

type packetOptions struct {
	out                      bool
	in, toIface              string
	from, to, proto, state   string
	uid, gid, mark, connMark uint32
}

func (o *packetOptions) register(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&o.out, "out", false, "a process of the namespace sends the packet")
	f.StringVar(&o.in, "in", "", "the packet comes in on this interface")
	f.StringVar(&o.from, "from", "", "its source, IP or IP:PORT; a packet that goes out gets its route's source")
	f.StringVar(&o.to, "to", "", "its destination, IP:PORT, or IP with --proto icmp")
	f.StringVar(&o.proto, "proto", "tcp", "its protocol: tcp, udp, sctp or icmp")
	f.StringVar(&o.state, "state", "new", "its connection tracking state: new, established, related, invalid or untracked")
	f.StringVar(&o.toIface, "to-iface", "", "the interface by which it leaves, where the routes don't say")
	f.Uint32Var(&o.uid, "uid", 0, "the user of the process that sends it")
	f.Uint32Var(&o.gid, "gid", 0, "the group of the process that sends it")
	f.Uint32Var(&o.mark, "mark", 0, "its mark")
	f.Uint32Var(&o.connMark, "connmark", 0, "its connection's mark")
	c.MarkFlagsOneRequired("out", "in")
	c.MarkFlagsMutuallyExclusive("out", "in")
	if err := c.MarkFlagRequired("to"); err != nil {
		panic(err)
	}
}

var traceStates = map[string]uint32{
	"new": trace.CTNew, "established": trace.CTEstablished, "related": trace.CTRelated, "invalid": trace.CTInvalid, "untracked": trace.CTUntracked,
}

var traceProtocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP, "icmp": unix.IPPROTO_ICMP}

// echoRequest is the type of a ping.
var echoRequest = map[bool]uint8{true: 8, false: 128} // IPv4, IPv6

func (o packetOptions) packet() (p trace.Packet, err error) {
	p = trace.Packet{
		Direction: trace.Out, ToInterface: o.toIface, Interface: o.in, UID: o.uid, GID: o.gid, Mark: o.mark, CTMark: o.connMark,
		Protocol: traceProtocols[o.proto], State: traceStates[o.state],
	}
	if !o.out {
		p.Direction = trace.In
	}
	if p.Protocol == 0 {
		return p, fmt.Errorf("--proto: %q is none of tcp, udp, sctp, icmp", o.proto)
	}
	if p.State == 0 {
		return p, fmt.Errorf("--state: %q is none of new, established, related, invalid, untracked", o.state)
	}
	if p.Dst, err = endpoint("--to", o.to); err != nil {
		return p, err
	}
	icmp := o.proto == "icmp"
	switch {
	case p.Dst.Addr().IsUnspecified():
		return p, fmt.Errorf("--to: no packet goes to %s: to connect to it is to connect to the loopback address", p.Dst.Addr())
	case toMany(p.Dst.Addr()) && o.proto != "udp" && !icmp:
		return p, fmt.Errorf("--to: %s is a multicast or broadcast address, and %s goes to one host only", p.Dst.Addr(), o.proto)
	case !icmp && p.Dst.Port() == 0:
		return p, fmt.Errorf("--to: %q has no port: write IP:PORT, or [IP]:PORT for IPv6", o.to)
	case icmp:
		p.ICMPType = echoRequest[p.Dst.Addr().Is4()]
		if p.Dst.Addr().Is6() {
			p.Protocol = unix.IPPROTO_ICMPV6
		}
	}
	switch {
	case o.from != "":
		p.Src, err = endpoint("--from", o.from)
	case p.Direction == trace.In:
		err = errors.New("--from: a packet that comes in needs its source")
	}
	if err == nil && p.Src.IsValid() && toMany(p.Src.Addr()) {
		err = fmt.Errorf("--from: %s is a multicast or broadcast address, which is no source", p.Src.Addr())
	}
	if err == nil && p.Src.IsValid() && p.Src.Addr().Is4() != p.Dst.Addr().Is4() {
		err = fmt.Errorf("--from: %s is not of the address family of --to %s", p.Src.Addr(), p.Dst.Addr())
	}
	return p, err
}

func toMany(a netip.Addr) bool {
	return a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// endpoint reads "IP", "IP:PORT" or "[IP]:PORT".
func endpoint(flag, s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		alone, errAlone := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
		a, err = netip.AddrPortFrom(alone, 0), errAlone
	}
	switch {
	case err != nil:
		return a, fmt.Errorf("%s: %q is neither IP nor IP:PORT", flag, s)
	case a.Addr().Zone() != "":
		return a, fmt.Errorf("%s: %q has a zone: leave it out, and name the interface by --in or --to-iface", flag, s)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}
