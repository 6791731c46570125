package nftrace

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVar) != "" {
		child()
	}
	os.Exit(nettest.Main(m))
}

// run runs a script in the namespace and returns what it prints.
func run(t *testing.T, ns *nettest.Namespace, script string) string {
	t.Helper()
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.Command("sh", "-ec", script).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// begin starts a trace in the namespace.
func begin(t *testing.T, ns *nettest.Namespace, flow Flow, flags uint32) *Trace {
	t.Helper()
	var trace *Trace
	err := ns.Do(func() (err error) {
		trace, err = start(flow, flags)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = trace.events.Close() })
	return trace
}

// world is a world that serves these packets.
func world(t *testing.T, text string) (*nettest.World, []nettest.Packet) {
	t.Helper()
	w := nettest.StartWorld(t)
	packets, err := nettest.ParsePackets(text)
	if err == nil {
		err = w.Serve(packets, 15001)
	}
	if err != nil {
		t.Fatal(err)
	}
	return w, packets
}

func send(t *testing.T, w *nettest.World, p nettest.Packet) {
	t.Helper()
	if got, err := w.Send(p); err != nil || got != p.Want.String() {
		t.Errorf("%s: got %s, %v", p, got, err)
	}
}

const childVar = "DETOUR_NFTRACE_CHILD"

// child traces until it is killed.
func child() {
	trace, err := Start(Flow{})
	fmt.Println(trace.table, err)
	select {}
}

func TestNothingIsLeftAfterCloseOrSIGKILL(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "left")
	for name, flags := range map[string]uint32{"owned": tableOwner, "as before Linux 5.12": 0, "flags that the kernel doesn't know": 1 << 30} {
		trace := begin(t, ns, Flow{}, flags)
		if tables := run(t, ns, "nft list tables"); tables != "table inet "+trace.Table()+"\n" {
			t.Errorf("%s: tables: %s", name, tables)
		}
		if err := trace.Close(); err != nil {
			t.Error(err)
		}
		if tables := run(t, ns, "nft list tables"); tables != "" {
			t.Errorf("%s: after Close: %s", name, tables)
		}
		if _, err := trace.Next(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: Next after Close: %v", name, err)
		}
	}
	var killed *exec.Cmd
	err := ns.Do(func() error {
		killed = exec.Command(os.Args[0])
		killed.Env = append(os.Environ(), childVar+"=1")
		out, err := killed.StdoutPipe()
		if err == nil {
			err = killed.Start()
		}
		if err == nil {
			var table, failed string
			if _, err = fmt.Fscan(out, &table, &failed); failed != "<nil>" {
				err = fmt.Errorf("%s %w", failed, err)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if tables := run(t, ns, "nft list tables"); !strings.HasPrefix(tables, "table inet detour-trace-") {
		t.Errorf("before SIGKILL: %s", tables)
	}
	_, _ = killed.Process.Kill(), killed.Wait()
	for deadline := time.Now().Add(nettest.Patience); ; time.Sleep(time.Millisecond) {
		tables := run(t, ns, "nft list tables")
		if tables == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after SIGKILL: %s", tables)
		}
	}
}

func TestATableThatSomebodyHasFlushedIsClosed(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "flushed")
	trace := begin(t, ns, Flow{}, 0)
	run(t, ns, "nft flush ruleset")
	if err := trace.Close(); err != nil {
		t.Error(err)
	}
}

// Others' packets, among them some that somebody else traces, pass beside the flow's.
func TestOnlyTheFlowIsTraced(t *testing.T) {
	t.Parallel()
	w, packets := world(t, `
		out udp 1.1.1.1:80 -> outside
		out udp 1.1.1.1:81 -> outside
		out 1.1.1.1:80 -> outside
		out udp 2.2.2.2:80 -> outside
		out udp [2001:db8::1]:80 -> outside
		out udp 127.0.0.1:80 -> app
		out udp 127.0.0.1:82 -> app
		in udp 80 -> app`)
	run(t, w.Pod, `nft -f - <<'END'
table inet a {
	chain out { type filter hook output priority 0 ; udp dport 81 meta nftrace set 1; }
	chain in { type filter hook prerouting priority 0; udp dport 82 meta nftrace set 1; }
	chain end { type filter hook postrouting priority 0; counter; }
}
END`)
	var all *netlink.Listener
	err := w.Pod.Do(func() (err error) {
		all, err = netlink.Listen(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTRACE, buffer)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	trace := begin(t, w.Pod, Flow{Protocol: unix.IPPROTO_UDP, To: netip.MustParseAddrPort("1.1.1.1:80")}, tableOwner)
	const rounds = 20
	for range rounds {
		for _, p := range packets {
			send(t, w, p)
		}
	}
	_ = trace.SetDeadline(time.Now().Add(time.Second))
	seen := map[netip.AddrPort]int{}
	for {
		e, err := trace.Next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Packet != nil {
			seen[e.Packet.To]++
		}
	}
	if want := (map[netip.AddrPort]int{packets[0].Dst: 2 * rounds}); !maps.Equal(seen, want) {
		t.Errorf("got packets to %v, want %v", seen, want)
	}
	traced := map[netip.AddrPort]bool{} // by anybody
	_ = all.SetDeadline(time.Now().Add(time.Second))
	for err = nil; err == nil; {
		err = all.Receive(func(_ int, body []byte) {
			if e, _ := decode(body); e.Packet != nil {
				traced[e.Packet.To] = true
			}
		})
	}
	for _, p := range packets[2:] {
		if p.Dst.Port() == 80 && traced[p.Dst] && p.Dst != packets[0].Dst {
			t.Errorf("a packet to %s is traced", p.Dst)
		}
	}
	if !traced[packets[1].Dst] {
		t.Error("what somebody else traces isn't seen")
	}
}

func TestLostEventsAreSaid(t *testing.T) {
	t.Parallel()
	w, packets := world(t, "out udp 1.1.1.1:80 -> outside")
	run(t, w.Pod, "nft -f - <<'END'\ntable inet a {\nchain o { type filter hook output priority 0;\n"+strings.Repeat("counter\n", 2000)+"}\n}\nEND")
	trace := begin(t, w.Pod, Flow{}, tableOwner)
	for range 10 {
		send(t, w, packets[0])
	}
	_ = trace.SetDeadline(time.Now().Add(nettest.Patience))
	if _, err := trace.Next(); !errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
	for range 2000 {
		if _, err := trace.Next(); err != nil {
			t.Fatalf("then: %v", err)
		}
	}
}

func TestFlowsThatCanNotBe(t *testing.T) {
	t.Parallel()
	v4, v6 := netip.MustParseAddrPort("1.1.1.1:80"), netip.MustParseAddrPort("[::1]:80")
	for _, c := range []struct {
		flow Flow
		want string
	}{
		{Flow{Protocol: unix.IPPROTO_TCP, From: v4, To: v6}, "trace protocol 6 from 1.1.1.1:80 to [::1]:80: source and destination are of different families"},
		{Flow{To: v6}, "trace protocol any from any to [::1]:80: a port needs a protocol that has ports: tcp, udp or sctp"},
		{Flow{Protocol: unix.IPPROTO_ICMP, To: netip.AddrPortFrom(netip.Addr{}, 80)}, "trace protocol 1 from any to any:80: a port needs a protocol that has ports: tcp, udp or sctp"},
	} {
		if _, err := Start(c.flow); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

func TestLegacyTablesAreListed(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "legacy")
	list := func() (v4, v6 []string) {
		err := ns.Do(func() (err error) {
			if v4, err = LegacyTables(rules.IPv4); err == nil {
				v6, err = LegacyTables(rules.IPv6)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return v4, v6
	}
	run(t, ns, "iptables-nft -t nat -A OUTPUT -j ACCEPT")
	if v4, v6 := list(); len(v4)+len(v6) > 0 {
		t.Errorf("with iptables-nft: %q, %q", v4, v6)
	}
	run(t, ns, "iptables-legacy -t nat -A OUTPUT -j ACCEPT; ip6tables-legacy -t raw -L; ip6tables-legacy -t mangle -L")
	v4, v6 := list()
	if slices.Sort(v6); !slices.Equal(v4, []string{"nat"}) || !slices.Equal(v6, []string{"mangle", "raw"}) {
		t.Errorf("got %q, %q", v4, v6)
	}
}
