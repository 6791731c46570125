package conns

import (
	"net/netip"

	"github.com/detour-cni/detour/pkg/sockets"
)

// ends are the namespace's sockets, by what identifies a connection: protocol, local and remote address.
type ends map[string]map[Tuple]sockets.Socket

// end returns the socket at the end of a connection that sends t.
func (s ends) end(protocol string, t Tuple) (sockets.Socket, bool) {
	own := s[protocol]
	for _, key := range []Tuple{
		t,
		{t.Source, netip.AddrPort{}}, // UDP sockets need no peer
		{anyOf(t.Source), netip.AddrPort{}},
		{netip.AddrPortFrom(netip.IPv6Unspecified(), t.Source.Port()), netip.AddrPort{}}, // which may serve both families
	} {
		found, ok := own[key]
		if ok && (protocol == "udp" || key == t) {
			return found, found.Inode != 0
		}
	}
	return sockets.Socket{}, false
}

// listener returns the socket that accepts connections, or receives datagrams, at an address.
func (s ends) listener(protocol string, at netip.AddrPort) (sockets.Socket, bool) {
	for _, key := range []netip.AddrPort{at, anyOf(at), netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())} {
		if found, ok := s[protocol][Tuple{Source: key}]; ok {
			return found, true
		}
	}
	return sockets.Socket{}, false
}

func anyOf(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port())
}

// readSockets lists the sockets of the calling thread's network namespace.
func readSockets() (ends, error) {
	list, err := sockets.List(sockets.All)
	if err != nil {
		return nil, err
	}
	all := ends{}
	for _, protocol := range protocols {
		all[protocol] = map[Tuple]sockets.Socket{}
	}
	for _, s := range list {
		all[protocols[s.Protocol]][Tuple{s.Local, s.Remote}] = s
	}
	return all, nil
}
