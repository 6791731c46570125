// Package livetrace follows one packet through a network namespace by the kernel's own trace events, and tells its way as package trace
// does. It sends the packet, or waits for it.
package livetrace

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/detour-cni/detour/pkg/nftrace"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/trace"
)

// ErrNone says that the kernel traced no packet.
var ErrNone = errors.New("no packet came")

// quiet is how long after an event no other follows if the packet is through: a packet's events are written within microseconds, the
// next try of a TCP connection follows after a second.
const quiet = 500 * time.Millisecond

// Follow traces the first packet like p in the calling thread's network namespace, for at most wait. A packet that goes Out is sent with
// p's user and group, one that comes In is waited for; ready is called once it may be sent. ns has the rules that the events refer to.
// Follow needs CAP_NET_ADMIN, and to send for another user CAP_SETUID and CAP_SETGID. Tracing is off when it returns.
func Follow(ctx context.Context, ns *trace.Namespace, p trace.Packet, wait time.Duration, ready func()) (result trace.Result, err error) {
	if err := unseen(p); err != nil {
		return trace.Result{}, err
	}
	var own sender
	if p.Direction == trace.Out {
		if own, err = open(p); err != nil {
			return trace.Result{}, fmt.Errorf("send %s: %w", p, err)
		}
		defer own.close()
		p = own.packet
	}
	t, err := nftrace.Start(nftrace.Flow{Protocol: p.Protocol, From: p.Src, To: p.Dst})
	if err != nil {
		return trace.Result{}, err
	}
	t.Ends = true
	defer func() { err = errors.Join(err, t.Close()) }()
	defer context.AfterFunc(ctx, func() { _ = t.SetDeadline(time.Unix(1, 0)) })()
	if err := t.SetDeadline(time.Now().Add(wait)); err != nil {
		return trace.Result{}, err
	}
	ready()
	if p.Direction == trace.Out {
		if err := own.send(); err != nil {
			return trace.Result{}, fmt.Errorf("send %s: %w", p, err)
		}
	}
	events, err := firstPacket(ctx, t)
	if err != nil {
		return trace.Result{}, err
	}
	if first, _ := final(events); first.From.IsValid() {
		p.Src = first.From
	}
	way, err := wayOf(ns, events)
	return trace.Result{Packet: p, Ways: []trace.Way{way}}, err
}

// unseen refuses a namespace in which the kernel's events would not tell the whole way.
func unseen(p trace.Packet) error {
	family := rules.IPv4
	if p.Dst.Addr().Is6() {
		family = rules.IPv6
	}
	tables, err := nftrace.LegacyTables(family)
	if err != nil {
		return err
	}
	if len(tables) > 0 {
		return fmt.Errorf("iptables-legacy has tables here (%v), and the kernel does not trace their rules: leave out --live", tables)
	}
	return nil
}

// firstPacket returns the events of the first packet, also of its second journey if it comes back in on lo.
func firstPacket(ctx context.Context, t *nftrace.Trace) ([]nftrace.Event, error) {
	var events []nftrace.Event
	back := uint32(0) // the packet's ID once it has come back
	for {
		e, err := t.Next()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded) && len(events) > 0:
			return events, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, fmt.Errorf("%w: nothing of this flow passed a chain of nf_tables", ErrNone)
		case err != nil:
			return nil, err
		}
		if len(events) == 0 {
			if err := t.SetDeadline(time.Now().Add(quiet)); err != nil {
				return nil, err
			}
		}
		if back == 0 && len(events) > 0 && e.ID != events[0].ID && e.Packet != nil && e.Packet.IIF == loopback {
			back = e.ID
		}
		if len(events) == 0 || e.ID == events[0].ID || e.ID == back {
			events = append(events, e)
		}
	}
}

// loopback is lo's index in every network namespace.
const loopback = 1

// final is the packet's addresses and interfaces as the last event with headers has them.
func final(events []nftrace.Event) (first, last *nftrace.Packet) {
	for _, e := range events {
		if e.Packet == nil {
			continue
		}
		if first == nil {
			first = e.Packet
		}
		last = e.Packet
	}
	if first == nil {
		first = &nftrace.Packet{From: netip.AddrPort{}, To: netip.AddrPort{}}
		last = first
	}
	return first, last
}
