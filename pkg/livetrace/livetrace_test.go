package livetrace

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/snapshot"
	"github.com/detour-cni/detour/pkg/trace"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// host has an interface eth0 that leads to peer, and these rules.
func host(t *testing.T, rules string) (here, peer *nettest.Namespace) {
	t.Helper()
	nettest.RequireProgram(t, "iptables-nft")
	here, peer = nettest.StartNamespace(t, "here"), nettest.StartNamespace(t, "peer")
	sh(t, here, "ip link add eth0 type veth peer name eth0 netns "+peer.Name())
	sh(t, here, "ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up; ip route add default via 192.0.2.2")
	sh(t, peer, "ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up; ip route add default via 192.0.2.1")
	sh(t, here, rules)
	return here, peer
}

func sh(t *testing.T, ns *nettest.Namespace, script string) {
	t.Helper()
	err := ns.Do(func() error {
		out, err := exec.Command("sh", "-ec", script).CombinedOutput()
		if err != nil {
			return errors.New(string(out))
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
}

// follow traces the packet by both ways of telling: as the kernel says, and as a walk says.
func follow(ctx context.Context, ns *nettest.Namespace, p trace.Packet, wait time.Duration, ready func()) (live, walked trace.Result, err error) {
	err = ns.Do(func() error {
		tables, err := snapshot.Read()
		if err != nil {
			return err
		}
		if live, err = Follow(ctx, tables, p, wait, ready); err != nil {
			return err
		}
		walked, err = trace.Walk(tables, live.Packet)
		return err
	})
	return live, walked, err
}

// matched are the rules that the packet matched. iptables-save also lists base chains that the kernel does not have yet, so policies are
// left out.
func matched(w trace.Way) (all []string) {
	for _, s := range w.Steps {
		if s.Rule != nil && s.Missed == "" {
			all = append(all, string(s.Hook)+" "+s.Rule.String())
		}
	}
	return all
}

var rulesOf = map[string]string{
	"iptables-nft": `
		for hook in PREROUTING INPUT OUTPUT POSTROUTING; do iptables-nft -t nat -A $hook -m mark --mark 99; done
		iptables-nft -t nat -N APP
		iptables-nft -t nat -A OUTPUT -p tcp -j APP
		iptables-nft -t nat -A APP -m owner --uid-owner 1500 -j RETURN
		iptables-nft -t nat -A APP -p tcp --dport 81 -j REDIRECT --to-ports 15001
		iptables-nft -t mangle -A OUTPUT -p udp -j MARK --set-xmark 0x7/0x7
		iptables-nft -A INPUT -i eth0 -p tcp --dport 7000 -j DROP
		iptables-nft -A OUTPUT -p udp --dport 53 -j DROP`,
	"nft": `nft -f - <<-END
		table inet app {
			chain to-proxy { type nat hook output priority -100; meta skuid 1500 return; tcp dport 81 redirect to :15001; }
			chain set-mark { type route hook output priority -150; meta l4proto udp meta mark set 7; }
			chain no-dns { type filter hook output priority 0; udp dport 53 drop; }
			chain no-redis { type filter hook input priority 0; iifname "eth0" tcp dport 7000 drop; }
		}
		END`,
}

func TestTheKernelAndAWalkTellTheSameWay(t *testing.T) {
	nettest.RequireNetns(t)
	to := netip.MustParseAddrPort
	for name, rules := range rulesOf {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			here, _ := host(t, rules)
			for _, test := range []struct {
				packet trace.Packet
				want   trace.Outcome
			}{
				{trace.Packet{Protocol: unix.IPPROTO_TCP, Dst: to("198.51.100.1:81")}, trace.Redirected},
				{trace.Packet{Protocol: unix.IPPROTO_TCP, Dst: to("198.51.100.1:81"), UID: 1500, GID: 1500}, trace.Accepted},
				{trace.Packet{Protocol: unix.IPPROTO_UDP, Dst: to("198.51.100.1:53")}, trace.Dropped},
				{trace.Packet{Protocol: unix.IPPROTO_UDP, Dst: to("198.51.100.1:54")}, trace.Accepted},
			} {
				test.packet.Direction = trace.Out
				live, walked, err := follow(t.Context(), here, test.packet, nettest.Patience, func() {})
				if err != nil {
					t.Fatalf("%s: %v", test.packet, err)
				}
				compare(t, live, walked, test.want)
			}
		})
	}
}

func compare(t *testing.T, live, walked trace.Result, want trace.Outcome) {
	t.Helper()
	l, w := live.Ways[0], walked.Ways[0]
	if l.Verdict != want || w.Verdict != want || l.Port != w.Port || l.Packet.To != w.Packet.To || l.Packet.Mark != w.Packet.Mark {
		t.Errorf("%s: the kernel says %s %+v, the walk %s %+v; want %s", live.Packet, l.Verdict, l.Packet, w.Verdict, w.Packet, want)
	}
	if a, b := matched(l), matched(w); !slices.Equal(a, b) {
		t.Errorf("%s: the kernel says\n%s\nthe walk says\n%s", live.Packet, strings.Join(a, "\n"), strings.Join(b, "\n"))
	}
}

// Other connections to the same destination are not taken for the packet.
func TestOtherConnectionsAreNotMixedIn(t *testing.T) {
	nettest.RequireNetns(t)
	t.Parallel()
	here, _ := host(t, rulesOf["nft"])
	busy := exec.Command("bash", "-c", "while :; do (exec 3<>/dev/tcp/198.51.100.1/81) 2>/dev/null; done")
	if err := here.Do(busy.Start); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Process.Kill(); _ = busy.Wait() }()
	for range 5 {
		p := trace.Packet{Direction: trace.Out, Protocol: unix.IPPROTO_TCP, Dst: netip.MustParseAddrPort("198.51.100.1:81"), UID: 1500, GID: 1500}
		live, walked, err := follow(t.Context(), here, p, nettest.Patience, func() {})
		if err != nil {
			t.Fatal(err)
		}
		compare(t, live, walked, trace.Accepted)
	}
}

func TestAPacketThatComesInIsWaitedFor(t *testing.T) {
	nettest.RequireNetns(t)
	for name, rules := range rulesOf {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			here, peer := host(t, rules)
			p := trace.Packet{
				Direction: trace.In, Interface: "eth0", Protocol: unix.IPPROTO_TCP,
				Src: netip.MustParseAddrPort("192.0.2.2:0"), Dst: netip.MustParseAddrPort("192.0.2.1:7000"),
			}
			live, walked, err := follow(t.Context(), here, p, nettest.Patience, func() {
				go func() {
					_ = peer.Do(func() error { return exec.Command("bash", "-c", "exec 3<>/dev/tcp/192.0.2.1/7000").Start() })
				}()
			})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, live, walked, trace.Dropped)
		})
	}
}

func TestNothingIsLeftWhenNoPacketComesOrSomebodyInterrupts(t *testing.T) {
	nettest.RequireNetns(t)
	t.Parallel()
	here, _ := host(t, "true")
	p := trace.Packet{
		Direction: trace.In, Interface: "eth0", Protocol: unix.IPPROTO_TCP,
		Src: netip.MustParseAddrPort("192.0.2.2:0"), Dst: netip.MustParseAddrPort("192.0.2.1:7000"),
	}
	if _, _, err := follow(t.Context(), here, p, 10*time.Millisecond, func() {}); !errors.Is(err, ErrNone) {
		t.Errorf("no packet: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, _, err := follow(ctx, here, p, nettest.Patience, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	sh(t, here, `test -z "$(nft list tables)" || { nft list tables; exit 1; }`)
}

func TestLegacyTablesAreRefused(t *testing.T) {
	nettest.RequireNetns(t)
	nettest.RequireProgram(t, "iptables-legacy")
	t.Parallel()
	here, _ := host(t, "iptables-legacy -A OUTPUT -j ACCEPT")
	p := trace.Packet{Direction: trace.Out, Protocol: unix.IPPROTO_TCP, Dst: netip.MustParseAddrPort("198.51.100.1:81")}
	_, _, err := follow(t.Context(), here, p, nettest.Patience, func() {})
	if err == nil || !strings.Contains(err.Error(), "iptables-legacy has tables here ([filter]), and the kernel does not trace their rules") {
		t.Error(err)
	}
}
