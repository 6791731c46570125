package nettest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Send sends the packet and returns where it arrived, in the words of the packet language; p.Want plays no part, except
// that a wanted timeout isn't waited for as long. What the language has no words for is told in full: a proxy that was
// given another original destination than the dialed one (`proxy 15001 original 1.1.1.1:81`), a server at another port
// (`app 81`), and families that part (`IPv4 app, IPv6 error: refused`). The error is for a packet that could not be sent
// at all. Send may be called concurrently.
func (w *World) Send(p Packet) (string, error) {
	if lacks := w.lacks(p); lacks != "" {
		return "", fmt.Errorf("there is no %s: the packet was not served", lacks)
	}
	switch p.Direction {
	case Guest:
		return w.ask(w.Guest, p, p.Dst.Addr())
	case In:
		return w.sendIn(p)
	default:
		return w.ask(w.Pod, p, p.Dst.Addr())
	}
}

func (w *World) sendIn(p Packet) (string, error) {
	to := podEnd
	if p.Via == Net1Link {
		to = podNet1
	}
	var v4, v6 string
	var err error
	if p.Families&IPv4 != 0 {
		if v4, err = w.ask(w.Outside, p, to.v4); err != nil {
			return "", err
		}
	}
	if p.Families&IPv6 != 0 {
		if v6, err = w.ask(w.Outside, p, to.v6); err != nil {
			return "", err
		}
	}
	if p.Families == Both && v4 != v6 {
		return fmt.Sprintf("IPv4 %s, IPv6 %s", v4, v6), nil
	}
	return max(v4, v6), nil // they are the same, or one is empty
}

// ask sends the packet from a namespace to its port of an address.
func (w *World) ask(from *Namespace, p Packet, to netip.Addr) (string, error) {
	call := Call{
		Protocol:    p.Protocol,
		Source:      netip.AddrPortFrom(p.Src, 0),
		Destination: netip.AddrPortFrom(to, p.Dst.Port()),
		Timeout:     w.Timeout,
	}
	if errors.Is(p.Want.Err, ErrTimeout) {
		call.Timeout = w.Silence
	}
	answer, err := Process{from, p.UID, p.GID}.Ask(call)
	if err == nil {
		return judge(answer, call.Destination), nil
	}
	if slices.Contains(dialErrors, err) {
		return failure(err), nil
	}
	return "", err
}

// judge leaves out of a listener's answer what agrees with what was dialed.
func judge(answer string, dialed netip.AddrPort) string {
	if short, ok := strings.CutSuffix(answer, " original "+dialed.String()); ok {
		return short
	}
	for _, name := range []string{"app", "outside"} {
		if answer == fmt.Sprintf("%s %d", name, dialed.Port()) {
			return name
		}
	}
	return answer
}
