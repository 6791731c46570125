// Package nftrace follows packets of one flow through everything that nf_tables runs in a network namespace, rule by rule, by
// the kernel's own trace events. iptables-nft's rules are nf_tables' too. What iptables-legacy programs is not seen; see
// LegacyTables.
package nftrace

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// Trace is a trace that is on. Its methods may be called from any thread, but only Close beside Next.
type Trace struct {
	// Ends has Next return an event of the kind Passed, too, when a packet has passed all chains of INPUT or POSTROUTING. Set it before
	// the first Next.
	Ends bool

	conn   nft.Conn // it owns the table
	events *netlink.Listener
	table  string
	mine   map[uint32]bool // the IDs of the flow's packets
	queue  []Event
}

// ErrLost says that events came faster than they were read, and that some of a packet's are missing.
var ErrLost = netlink.ErrLost

// buffer takes the events of some thousand rules.
const buffer = 4 << 20

// Start turns tracing on for a flow in the calling thread's network namespace, by a table of its own whose chains see a packet
// ahead of all others. The kernel removes the table with this process, even after SIGKILL, unless it is older than Linux 5.12:
// then only Close does. Start needs CAP_NET_ADMIN. If it fails, nothing is left behind.
func Start(flow Flow) (*Trace, error) { return start(flow, tableOwner) }

// start makes a table with these flags, or without them if the kernel doesn't know them.
func start(flow Flow, flags uint32) (*Trace, error) {
	rule, err := flow.rule()
	if err != nil {
		return nil, fmt.Errorf("trace %s: %w", flow, err)
	}
	t := &Trace{table: fmt.Sprintf("detour-trace-%016x", rand.Uint64()), mine: map[uint32]bool{}}
	if t.events, err = nft.Listen(unix.NFNLGRP_NFTRACE, buffer); err != nil {
		return nil, fmt.Errorf("trace %s: %w", flow, err)
	}
	if t.conn, err = nft.Open(); err != nil {
		return nil, errors.Join(fmt.Errorf("trace %s: %w", flow, err), t.events.Close())
	}
	err = t.conn.Commit(creation(t.table, flags, rule))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		err = t.conn.Commit(creation(t.table, 0, rule))
	}
	if err != nil {
		t.conn.Close()
		return nil, errors.Join(fmt.Errorf("trace %s in table %s: %w", flow, t.table, err), t.events.Close())
	}
	return t, nil
}

// Table is the name of the trace's own table, of family inet. Next leaves out its events but those of the kind Passed.
func (t *Trace) Table() string { return t.table }

// Next waits for the next event of a packet of the flow. Events of one packet come in their order, those of several packets
// may be mixed. Next returns ErrLost if some are missing from now on, os.ErrDeadlineExceeded after the deadline, and os.ErrClosed
// after Close.
func (t *Trace) Next() (Event, error) {
	for len(t.queue) == 0 {
		err := t.events.Receive(func(kind int, body []byte) {
			if kind != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_TRACE {
				return
			}
			if e, ok := decode(body); ok && t.concerns(&e) {
				t.queue = append(t.queue, e)
			}
		})
		if err != nil {
			return Event{}, err
		}
	}
	e := t.queue[0]
	t.queue = t.queue[1:]
	return e, nil
}

// concerns reports whether the event is one of the flow's packets. Others may be traced by somebody else. Their packets are
// new to this table's chains or pass them without a trace. A packet gets another ID as it comes back over lo, still traced but
// perhaps with translated addresses.
func (t *Trace) concerns(e *Event) bool {
	switch {
	case e.Table != t.table:
		return t.mine[e.ID]
	case lastChains[e.Chain]:
		e.Kind = Passed
		return t.Ends && t.mine[e.ID]
	}
	if e.Kind == RuleHit || e.Packet != nil && e.Packet.IIF == loopback {
		t.mine[e.ID] = true
	}
	return false
}

// lastChains are the chains of the trace's own table that see what has passed all others.
var lastChains = map[string]bool{"input": true, "postrouting": true}

// loopback is lo's index in every network namespace.
const loopback = 1

// SetDeadline is until when Next waits; the zero time is for ever.
func (t *Trace) SetDeadline(d time.Time) error { return t.events.SetDeadline(d) }

// Close turns tracing off and removes the table. A Next that waits ends.
func (t *Trace) Close() error {
	err := t.conn.Commit(removal(t.table))
	if errors.Is(err, unix.ENOENT) { // somebody has flushed all tables, or Close ran before
		err = nil
	}
	t.conn.Close()
	if err != nil {
		err = fmt.Errorf("remove table %s: %w: `nft delete table inet %s` does", t.table, err, t.table)
	}
	return errors.Join(err, t.events.Close())
}
