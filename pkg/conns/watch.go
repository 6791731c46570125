package conns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/conns/envoy"
	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/netns"
)

// Event is something that happens to a connection.
type Event struct {
	Time time.Time `json:"time"`
	// Event is "begin" or "end". A connection to the pod begins when it is established, unless it is redirected. At its end, a
	// connection that reached the proxy has its final Way.
	Event string `json:"event"`
	Connection
	// Envoy and Advice are as in a Destination, for a connection that the proxy has not passed on.
	Envoy  *envoy.Answer `json:"envoy,omitempty"`
	Advice string        `json:"advice,omitempty"`
}

// The names of events.
const (
	Begin = "begin"
	End   = "end"
)

// Watcher follows the connections of a network namespace.
type Watcher struct {
	ns     *netns.Pod
	events *netlink.Listener
	// Before is the namespace's state when the watcher began.
	Before Snapshot
}

// The groups of connection tracking (enum nfnetlink_groups), and the type of the message at a connection's end.
const (
	groupNew     = 1
	groupUpdate  = 2
	groupDestroy = 3
	deleted      = 2 // IPCTNL_MSG_CT_DELETE
)

// watchBuffer holds the events of some 10,000 connections.
const watchBuffer = 8 << 20

// NewWatcher begins to listen. The caller must Close it. It needs what Read needs.
func NewWatcher(ns *netns.Pod) (*Watcher, error) {
	w := &Watcher{ns: ns}
	err := ns.Do(func() (err error) {
		w.events, err = netlink.Listen(unix.NETLINK_NETFILTER, groupNew, watchBuffer)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("follow connections: %w", err)
	}
	err = errors.Join(w.events.Join(groupUpdate), w.events.Join(groupDestroy))
	if err == nil {
		w.Before, err = Read(ns)
	}
	if err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// Close ends the listening.
func (w *Watcher) Close() { _ = w.events.Close() }

// Follow calls each with every event until ctx ends, which is no error.
func (w *Watcher) Follow(ctx context.Context, p Proxy, e *envoy.Config, rule Rule, each func(Event)) error {
	defer context.AfterFunc(ctx, func() { _ = w.events.SetDeadline(time.Unix(1, 0)) })()
	t := newTracker(w.Before, p, e, rule)
	t.look = w.sockets
	for {
		err := w.events.Receive(func(kind int, body []byte) {
			if f, ok := parseFlow(body); ok {
				t.happen(f, kind&0xff == deleted, each)
			}
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
			return nil
		case errors.Is(err, netlink.ErrLost):
			t.lost()
		case err != nil:
			return err
		}
	}
}

// sockets are those of this moment; none if they can't be read.
func (w *Watcher) sockets() (s ends) {
	_ = w.ns.Do(func() (err error) {
		s, err = readSockets()
		return err
	})
	return s
}

// tracker follows each connection from its first packet to its last.
type tracker struct {
	judge
	rule Rule
	look func() ends
	live map[flowKey]*life
}

// life is a connection that has not ended.
type life struct {
	Connection
	to        Destination // its own alone
	began     time.Time
	onward    []*life // what the proxy made for it
	elsewhere []netip.AddrPort
	blind     string // why not all of its life was seen; empty if it was
	over      bool
}

func newTracker(before Snapshot, p Proxy, e *envoy.Config, rule Rule) *tracker {
	t := &tracker{judge: judge{Snapshot: before, proxy: p, envoy: e}, rule: rule, live: map[flowKey]*life{}}
	for _, c := range before.classify(p) {
		over := c.State == "TIME_WAIT" || c.State == "CLOSE"
		t.live[c.key()] = &life{Connection: c, to: t.destination(c), blind: "it began before the watch", over: over}
	}
	return t
}

// lost says that events are missing.
func (t *tracker) lost() {
	for _, l := range t.live {
		l.blind = "the kernel had more events than were read, and dropped some"
	}
}

// happen takes one event of the kernel.
func (t *tracker) happen(f Flow, gone bool, each func(Event)) {
	key := f.key()
	l := t.live[key]
	if l == nil {
		if gone || t.unaccepted(f) {
			return
		}
		l = t.begin(f)
		t.live[key] = l
		t.meet(l)
		each(Event{Time: time.Now(), Event: Begin, Connection: l.Connection})
	}
	switch {
	case !gone:
		l.Flow = f
	case l.State == "SYN_SENT" && time.Since(l.began) < time.Duration(t.timeouts["SYN_SENT"])*time.Second:
		// Before the time is up, only a reset ends it so. The kernel's last word does not have the state.
		l.State = "CLOSE"
	}
	if over := gone || f.State == "TIME_WAIT" || f.State == "CLOSE"; over && !l.over {
		l.over = true
		each(t.end(l))
	}
	if gone {
		delete(t.live, key)
	}
}

// unaccepted reports whether the connection comes in untranslated and is not established: nobody has a socket yet that tells who
// serves it.
func (t *tracker) unaccepted(f Flow) bool {
	handshake := f.State == "SYN_SENT" || f.State == "SYN_RECV"
	from, to := f.Original.Source, f.Original.Destination
	return handshake && f.Reply.Source == to && !t.local(from.Addr()) && t.local(to.Addr())
}

// acceptWait and acceptTries bound the wait for somebody to accept a connection.
const (
	acceptWait  = 2 * time.Millisecond
	acceptTries = 25
)

// begin classifies a connection by the sockets of this moment.
func (t *tracker) begin(f Flow) *life {
	t.flows = []Flow{f}
	var c Connection
	for range acceptTries {
		t.sockets = t.look()
		c = t.classify(t.proxy)[0]
		accepting, queued := t.sockets[f.Protocol][Tuple{f.Original.Destination, f.Original.Source}]
		if c.Way != Unknown || !queued || accepting.Inode != 0 {
			break
		}
		time.Sleep(acceptWait)
	}
	l := &life{Connection: c, to: t.destination(c), began: time.Now()}
	if t.rule != nil && l.Way == Direct && l.Direction == Out {
		l.Rule = t.rule(l.Connection)
	}
	return l
}

// meet notes which connections a new one may carry, or be carried by.
func (t *tracker) meet(l *life) {
	for _, other := range t.live {
		switch {
		case !l.reached() && other.reached() && !other.over:
			t.carry(other, l)
		case l.reached() && !other.reached() && !other.over:
			t.carry(l, other)
		}
	}
}

// carry notes that the connection onward may carry reached.
func (t *tracker) carry(reached, onward *life) {
	d := &reached.to
	switch {
	case t.claim(d, &onward.Connection):
		reached.onward = append(reached.onward, onward)
	case d.Envoy != nil && !d.Envoy.Open:
	case t.maybeElsewhere(d, onward.Connection):
		reached.elsewhere = append(reached.elsewhere, onward.To())
	}
}

// destination is the connection's own, alone.
func (t *tracker) destination(c Connection) Destination {
	d := Destination{Direction: c.Direction, Protocol: c.Protocol, To: c.To()}
	d.add(c)
	if c.reached() {
		t.ask(&d)
	}
	return d
}

// end says what became of a connection.
func (t *tracker) end(l *life) Event {
	e := Event{Time: time.Now(), Event: End}
	if l.reached() {
		for _, o := range l.onward {
			l.to.Onward = append(l.to.Onward, o.Connection)
		}
		l.Way, l.Why = t.finally(l, &l.to)
		if l.Way == Swallowed || l.Way == Unknown {
			e.Envoy = l.to.Envoy
		}
		if l.Way == Swallowed {
			e.Advice = advice(t.proxy, &l.to)
		}
	}
	l.Idle = 0
	e.Connection = l.Connection
	return e
}

func (t *tracker) finally(l *life, d *Destination) (Way, string) {
	switch {
	case len(d.Onward) > 0 && !slices.ContainsFunc(l.onward, func(o *life) bool { return o.began.After(l.began) }):
		return Onward, "by a connection that the proxy had before, as it may with HTTP"
	case len(d.Onward) > 0:
		return Onward, onwardTo(d)
	case l.State == "CLOSE" && !slices.Contains(l.Status, seenReply):
		return Swallowed, fmt.Sprintf("the proxy's port %d refused it", l.Listener)
	case slices.Contains(t.proxy.DNS, l.Listener):
		return dnsVerdict(d)
	case d.Envoy != nil && d.Envoy.Drops():
		return Swallowed, "Envoy's configuration says so"
	case l.blind != "":
		return Unknown, l.blind
	case len(l.elsewhere) > 0:
		slices.SortFunc(l.elsewhere, netip.AddrPort.Compare)
		return Unknown, "the proxy may have carried it by its connections to " + list(slices.Compact(l.elsewhere))
	}
	return Swallowed, ""
}
