package nettest

import (
	"errors"
	"fmt"
	"math"
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
	words := strings.Fields(sent)
	if len(words) < 2 {
		return Packet{}, fmt.Errorf("packet %q: a direction and a destination are needed", strings.TrimSpace(sent))
	}
	p, err := parseSent(words[0], words[1], words[2:])
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

func parseSent(direction, dst string, options []string) (Packet, error) {
	switch direction {
	case "out":
		return parseOut(dst, options)
	case "in":
		return parseIn(Both, dst, options)
	case "in4":
		return parseIn(IPv4, dst, options)
	case "in6":
		return parseIn(IPv6, dst, options)
	}
	return Packet{}, fmt.Errorf("direction %q: out, in, in4 or in6 is needed", direction)
}

func parseOut(dst string, options []string) (Packet, error) {
	addr, err := parseDestination(dst)
	if err != nil {
		return Packet{}, fmt.Errorf("destination %q: %w", dst, err)
	}
	p := Packet{Direction: Out, Families: familyOf(addr.Addr()), Dst: addr, UID: AppUID}
	if len(options) == 0 {
		return p, nil
	}
	if len(options) > 1 {
		return Packet{}, fmt.Errorf("option %q: at most one option, uid=UID, may follow the destination", options[1])
	}
	p.UID, err = parseUID(options[0])
	return p, err
}

func parseIn(families Families, dst string, options []string) (Packet, error) {
	port, err := parsePort(dst)
	if err != nil {
		return Packet{}, err
	}
	if len(options) > 0 {
		return Packet{}, fmt.Errorf("option %q: an inbound packet has none", options[0])
	}
	return Packet{Direction: In, Families: families, Dst: netip.AddrPortFrom(netip.Addr{}, port)}, nil
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
	}
	return dst, nil
}

func parseUID(option string) (uint32, error) {
	text, found := strings.CutPrefix(option, "uid=")
	if !found {
		return 0, fmt.Errorf("option %q: uid=UID is the only one", option)
	}
	uid, err := strconv.ParseUint(text, 10, 32)
	// The kernel reads the highest number as "no UID".
	if err != nil || uid == math.MaxUint32 {
		return 0, fmt.Errorf("option %q: a UID from 0 to %d is needed", option, uint32(math.MaxUint32-1))
	}
	return uint32(uid), nil
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
