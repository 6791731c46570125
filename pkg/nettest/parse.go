package nettest

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ParsePackets reads packets, one per line. A # begins a comment; blank lines are skipped. An error names the first
// line that is wrong, counted from 1, and what is wrong with it.
func ParsePackets(text string) ([]Packet, error) {
	var packets []Packet
	number := 0
	for line := range strings.Lines(text) {
		number++
		line, _, _ = strings.Cut(line, "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		p, err := parsePacket(line)
		if err != nil {
			return nil, fmt.Errorf("packets: line %d: %w", number, err)
		}
		packets = append(packets, p)
	}
	return packets, nil
}

func parsePacket(line string) (Packet, error) {
	sent, want, found := strings.Cut(line, "->")
	if !found {
		return Packet{}, errors.New("no -> between packet and outcome")
	}
	p, err := parseSent(strings.Fields(sent))
	if err != nil {
		return Packet{}, err
	}
	if p.Want, err = parseOutcome(strings.Fields(want)); err != nil {
		return Packet{}, err
	}
	if p.Direction == In && p.Want.Kind == ToOutside {
		return Packet{}, errors.New("outcome outside: an inbound packet stays in the pod")
	}
	return p, nil
}

// directions are the words that a line begins with, and what they say.
var directions = map[string]Packet{
	"out":   {Direction: Out, UID: AppUID, GID: AppGID},
	"in":    {Direction: In, Families: Both},
	"in4":   {Direction: In, Families: IPv4},
	"in6":   {Direction: In, Families: IPv6},
	"guest": {Direction: Guest},
}

func parseSent(words []string) (Packet, error) {
	incomplete := fmt.Errorf("packet %q: a direction and a destination are needed", strings.Join(words, " "))
	if len(words) < 2 {
		return Packet{}, incomplete
	}
	p, found := directions[words[0]]
	if !found {
		return Packet{}, fmt.Errorf("direction %q: out, in, in4, in6 or guest is needed", words[0])
	}
	words = words[1:]
	if words[0] == UDP.String() {
		p.Protocol, words = UDP, words[1:]
	}
	if len(words) > 0 {
		if found, err := p.setVia(words[0]); err != nil {
			return Packet{}, err
		} else if found {
			words = words[1:]
		}
	}
	if len(words) == 0 {
		return Packet{}, incomplete
	}
	if err := p.setDestination(words[0]); err != nil {
		return Packet{}, err
	}
	return p, p.setOptions(words[1:])
}

func (p *Packet) setDestination(text string) error {
	if p.Direction == In {
		port, err := parsePort(text)
		p.Dst = netip.AddrPortFrom(netip.Addr{}, port)
		return err
	}
	dst, err := parseDestination(text)
	if err == nil && p.Direction == Guest && dst.Addr().IsLoopback() {
		err = errors.New("the guest's loopback is not the pod's")
	}
	p.Dst, p.Families = dst, familyOf(dst.Addr())
	return wrap(fmt.Sprintf("destination %q", text), err)
}

// parseDestination accepts what a socket can connect to, and each address in its own family only.
func parseDestination(text string) (netip.AddrPort, error) {
	dst, err := netip.ParseAddrPort(text)
	switch {
	case err != nil:
		return dst, errors.New("IPV4:PORT or [IPV6]:PORT is needed")
	case dst.Port() == 0:
		return dst, errors.New("port 0 can't be dialed")
	case dst.Addr().Is4In6(), dst.Addr().Zone() != "":
		return dst, errors.New("neither an IPv4 address in IPv6 form nor a zone is allowed")
	case dst.Addr().IsUnspecified(), dst.Addr().IsMulticast():
		return dst, errors.New("the address is no host's")
	case dst.Addr() == GuestIPv4, dst.Addr() == GuestIPv6:
		return dst, errors.New("nothing is served in the guest")
	}
	return dst, nil
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("port %q: a number from 1 to 65535 is needed", text)
	}
	return uint16(port), nil
}

func parseOutcome(words []string) (Outcome, error) {
	text := strings.Join(words, " ")
	switch {
	case text == "outside":
		return Outcome{Kind: ToOutside}, nil
	case text == "app":
		return Outcome{Kind: ToApp}, nil
	case len(words) == 2 && words[0] == "proxy":
		port, err := parsePort(words[1])
		return Outcome{Kind: ToProxy, ProxyPort: port}, wrap(fmt.Sprintf("outcome %q", text), err)
	}
	for _, err := range dialErrors {
		if text == failure(err) {
			return Outcome{Kind: Failed, Err: err}, nil
		}
	}
	return Outcome{}, fmt.Errorf("outcome %q: proxy PORT, outside, app or error: REASON is needed", text)
}

func familyOf(addr netip.Addr) Families {
	if addr.Is4() {
		return IPv4
	}
	return IPv6
}
