package trace_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/nftrace"
	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/routes"
)

// world is a router, the node, with a host on either side. Nobody answers there: a packet has only its own events and counters.
//
// The kernel's word on a packet are its trace events. nftrace traces every packet, and a table of the world's own has the first
// word in the hooks where packets begin, and the last word in those where they end.
//
// One thread on one processor sends all packets, and that processor's queue delivers them one after the other. So a packet has
// come to its end when the sentinel that was sent behind it arrives on lo.
type world struct {
	t     *testing.T
	node  *nettest.Namespace
	hosts map[string]*nettest.Namespace // by the node's interface
	trace *nftrace.Trace
	ends  map[string]end // where packets come in, by the node's interface
	raw   map[rawKey]int // sockets of the node's processes
	names map[uint32]string
	last  uint16 // the last port that was given away

	routing trace.Routing
}

// end is a packet socket.
type end struct {
	fd    int
	index int
	mac   [6]byte // of the node's interface
}

type rawKey struct {
	v6       bool
	uid, gid uint32
}

const judgeTable = "judge"

// edges is the world's own table. Its chain tracked turns connection tracking on, which the kernel leaves off until a rule needs
// it. Its last chain in hook input comes behind conntrack's confirmation, so that there are connections, and drops the packets, so
// that nobody answers.
const edges = `
table inet judge {
	chain tracked { ct state new; }
	chain sentinel { drop; }
	chain own { drop; }
	chain first-in {
		type filter hook prerouting priority -2147483640;
		ip saddr 127.0.0.9 goto sentinel
	}
	chain first-out {
		type filter hook output priority -2147483640;
		meta skuid >= 0 accept
		icmpv6 type nd-redirect drop
		goto own
	}
	chain here {
		type filter hook input priority 2147483647;
		drop
	}
	chain left {
		type filter hook postrouting priority 2147483646;
	}
}`

// netOf are the commands that make the node's network. A host's own packets, such as neighbour discovery, are dropped.
const netOf = `
set -e
for k in net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
	net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.all.accept_local=1 net.ipv4.conf.all.send_redirects=0 \
	net.ipv4.conf.default.send_redirects=0 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0 net.ipv6.conf.default.accept_dad=0 \
	net.ipv6.conf.default.router_solicitations=0; do
	echo ${k#*=} >/proc/sys/$(echo ${k%=*} | tr . /)
done
side() { # interface, its far end, its host, number
	ip link add $1 address 02:00:00:00:0$4:01 type veth peer name $2 address 02:00:00:00:0$4:02 netns $3
	ip addr add 10.$4.0.1/24 dev $1
	ip addr add fd0$4::1/64 dev $1 nodad
	ip -n $3 link set $2 up
	ip link set $1 up arp off # every neighbor is there, so that nobody is told later that it is not
	ip route add 10.$4.128.0/17 via 10.$4.0.2
	ip route add fd0$4:0:0:8::/64 via fd0$4::2
	ip netns exec $3 nft 'add table inet quiet
		add chain inet quiet out { type filter hook output priority 0; policy drop; }
		add chain inet quiet in { type filter hook prerouting priority -300; policy drop; }'
}
side left0 far0 LEFT 1
side right0 far0 RIGHT 2
ip route add default via 10.2.0.2
ip route add default via fd02::2
for f in -4 -6; do
	ip $f rule add fwmark 0x100/0x100 lookup 100
	ip $f route add local default dev lo table 100
	ip $f rule add fwmark 0x200/0x200 lookup 101
done
ip route add default via 10.1.0.2 table 101
ip -6 route add default via fd01::2 table 101
`

// routingMarks are the bits that netOf's rules look at.
const routingMarks = 0x300

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, node: nettest.StartNamespace(t, "node"), ends: map[string]end{}, raw: map[rawKey]int{}, names: map[uint32]string{},
		hosts: map[string]*nettest.Namespace{"left0": nettest.StartNamespace(t, "left"), "right0": nettest.StartNamespace(t, "right")},
	}
	w.run(strings.NewReplacer("LEFT", w.hosts["left0"].Name(), "RIGHT", w.hosts["right0"].Name()).Replace(netOf))
	w.nft(edges)
	w.listen(15001, 15002)
	for side, host := range w.hosts {
		w.openEnd(side, host, "far0")
	}
	w.openEnd("lo", w.node, "lo")
	w.readRoutes()
	w.do(func() (err error) {
		w.trace, err = nftrace.Start(nftrace.Flow{})
		return err
	})
	t.Cleanup(func() { _ = w.trace.Close() })
	w.do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			w.names[uint32(l.Attrs().Index)] = l.Attrs().Name
			if e, ok := w.ends[l.Attrs().Name]; ok {
				copy(e.mac[:], l.Attrs().HardwareAddr)
				w.ends[l.Attrs().Name] = e
			}
		}
		return err
	})
	return w
}

// readRoutes reads both families' routes, addresses and rules.
func (w *world) readRoutes() {
	route := w.run("ip -4 -j route show table all; ip -6 -j route show table all")
	rule := w.run("ip -4 -j rule; ip -6 -j rule")
	var err error
	if w.routing, err = routes.Read([]byte(route), []byte(w.run("ip -j addr")), []byte(rule)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) do(f func() error) {
	w.t.Helper()
	if err := w.node.Do(f); err != nil {
		w.t.Fatal(err)
	}
}

// run runs a script in the node and returns what it prints.
func (w *world) run(script string) string {
	w.t.Helper()
	out, err := w.try("sh", "", "-ec", script)
	if err != nil {
		w.t.Fatalf("%v: %s\n%s", err, out, script)
	}
	return out
}

// try runs a program in the node with this input.
func (w *world) try(program, input string, args ...string) (out string, err error) {
	err = w.node.Do(func() error {
		cmd := exec.Command(program, args...)
		cmd.Stdin = strings.NewReader(input)
		b, err := cmd.Output()
		out = string(b)
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			out = string(exit.Stderr)
		}
		return err
	})
	return out, err
}

func (w *world) nft(text string) {
	w.t.Helper()
	if out, err := w.try("nft", text, "-f", "-"); err != nil {
		w.t.Fatalf("%v: %s\n%s", err, out, text)
	}
}

// openEnd opens the far end of the node's interface.
func (w *world) openEnd(side string, host *nettest.Namespace, name string) {
	err := host.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		w.ends[side] = end{fd: fd, index: link.Attrs().Index}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = unix.Close(w.ends[side].fd) })
}

// socket is a raw socket of a process of the node.
func (w *world) socket(key rawKey) int {
	if fd, ok := w.raw[key]; ok {
		return fd
	}
	w.do(func() error {
		_, errGID := unix.SetfsgidRetGid(int(key.gid))
		_, errUID := unix.SetfsuidRetUid(int(key.uid))
		family := unix.AF_INET
		if key.v6 {
			family = unix.AF_INET6
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		w.raw[key] = fd
		return errors.Join(errGID, errUID, err)
	})
	w.t.Cleanup(func() { _ = unix.Close(w.raw[key]) })
	return w.raw[key]
}

// pin keeps the test on one thread and that on one processor.
func pin(t *testing.T) {
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for cpu := range 1024 {
		if before.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // on another thread; this one ends with its goroutine
		_ = unix.SchedSetaffinity(0, &before)
	})
}

// send sends a packet: out by a process, or in by the far end of an interface.
func (w *world) send(p probe) error {
	b := p.bytes()
	if p.Direction == trace.In {
		return w.sendIn(p.Interface, b)
	}
	dst := p.Dst.Addr()
	fd := w.socket(rawKey{dst.Is6(), p.UID, p.GID})
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(p.Mark)); err != nil {
		return err
	}
	if dst.Is6() {
		return unix.Sendto(fd, b, 0, &unix.SockaddrInet6{Addr: dst.As16()})
	}
	return unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: dst.As4()})
}

func (w *world) sendIn(side string, b []byte) error {
	e := w.ends[side]
	protocol := uint16(unix.ETH_P_IP)
	if b[0]>>4 == 6 {
		protocol = unix.ETH_P_IPV6
	}
	frame := append(slices.Clone(e.mac[:]), 2, 0, 0, 0, 9, 9, byte(protocol>>8), byte(protocol))
	to := unix.SockaddrLinklayer{Ifindex: e.index, Halen: 6, Protocol: protocol<<8 | protocol>>8}
	return unix.Sendto(e.fd, append(frame, b...), 0, &to)
}

// seen is the kernel's word on a packet.
type seen struct {
	events     []nftrace.Event // of the ruleset's tables
	counts     map[place]int   // of legacy rules and policies that it met
	at         string          // "here", "left" by an interface, or "" if it ended elsewhere
	out        string          // the interface by which it left
	from, to   netip.AddrPort  // at its end
	mark       uint32
	answers    []netip.Addr // to whom the node has sent something by itself: a reset, an ICMP error, its interest in a multicast group
	connection string       // as the kernel lists it
	err        error        // of the sending process
}

// watch sends a packet and says what became of it.
func (w *world) watch(p probe) (s seen) {
	w.t.Helper()
	s.err = w.send(p)
	if err := w.sendIn(trace.Loopback, sentinel.bytes()); err != nil {
		w.t.Fatal(err)
	}
	_ = w.trace.SetDeadline(time.Now().Add(nettest.Patience))
	for {
		e, err := w.trace.Next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.t.Fatalf("the sentinel got lost behind %v", p)
		}
		if err != nil {
			w.t.Fatal(err)
		}
		if e.Table != judgeTable {
			s.events = append(s.events, e)
			continue
		}
		switch {
		case e.Chain == "sentinel":
			return s
		case e.Packet == nil: // the first event of the chain has said it
		case e.Chain == "first-out" && e.Verdict.Chain == "own":
			s.answers = append(s.answers, e.Packet.To.Addr())
		case e.Chain == "here", e.Chain == "left" && w.names[e.Packet.OIF] != trace.Loopback:
			s.at, s.out, s.from, s.to, s.mark = e.Chain, w.names[e.Packet.OIF], e.Packet.From, e.Packet.To, e.Mark
		}
	}
}

func (s seen) String() string {
	switch s.at {
	case "here":
		return fmt.Sprintf("delivered: %s to %s, mark %#x", s.from, s.to, s.mark)
	case "left":
		return fmt.Sprintf("left by %s: %s to %s, mark %#x", s.out, s.from, s.to, s.mark)
	}
	return fmt.Sprintf("gone (it answers %v, error %v)", s.answers, s.err)
}

// connection is the connection of a packet as /proc lists it; "" if there is none.
func (w *world) connection(p probe) (line string) {
	w.do(func() error {
		list, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
		for l := range strings.Lines(string(list)) {
			if strings.Contains(l, p.tuple()) {
				line = l
				break
			}
		}
		return err
	})
	return line
}

// port is one that no connection had so far.
func (w *world) port() uint16 {
	if w.last++; w.last < 20000 {
		w.last = 20000
	}
	return w.last
}

// listen opens the transparent listeners that TPROXY needs.
func (w *world) listen(ports ...uint16) {
	for _, port := range ports {
		l, err := nettest.Process{Namespace: w.node}.ListenTransparent(port, nettest.ProxyAt(port))
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _ = l.Close() })
	}
}
