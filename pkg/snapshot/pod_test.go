package snapshot

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/backend/iptables"
	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/backend/route"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
	"github.com/detour-cni/detour/pkg/trace"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// proxyPorts are where a proxy listens in each test's pod.
var proxyPorts = []uint16{15001, 15003, 15006, 15008, 15053, 5300}

// proxyID is the user and the group of the proxies' own sockets.
const proxyID = 1337

// testPod is a pod in the kernel in which rulesets can be programmed one after the other.
type testPod struct {
	world  *nettest.World
	kernel kernel
	rs     rules.Ruleset // as programmed
}

// kernel is one way to have the kernel follow a ruleset.
type kernel struct {
	name string
	// program puts a ruleset, for both families, in the place of the one before, in the namespace it is called in.
	program func(ctx context.Context, lock *os.File, rs, before rules.Ruleset, families []rules.Family) error
	// counts says that <name>-save tells how often each rule was matched.
	counts bool
}

// kernels are all that there are: two of iptables, and nftables.
func kernels(t *testing.T) []kernel {
	nettest.RequireProgram(t, "iptables-nft-restore")
	nettest.RequireProgram(t, "iptables-legacy-restore")
	var all []kernel
	for _, b := range iptables.Installed(t.Context()) {
		all = append(all, kernel{b.Name(), func(ctx context.Context, lock *os.File, rs, before rules.Ruleset, families []rules.Family) error {
			return b.Apply(ctx, lock, iptables.Compile(rs, families), iptables.Compile(before, rules.Families))
		}, true})
	}
	return append(all, kernel{nftables.Name, func(_ context.Context, _ *os.File, rs, _ rules.Ruleset, families []rules.Family) error {
		return nftables.Apply(nftables.Compile(rs, families))
	}, false})
}

func newPod(t *testing.T, k kernel) *testPod {
	t.Helper()
	world := nettest.StartWorld(t)
	world.ProxyUID, world.ProxyGID = proxyID, proxyID
	// What a connection leaves behind when connection tracking was told to forget it must not meet the next one.
	sysctl(t, world.Pod, "netfilter/nf_conntrack_tcp_loose", "0")
	sysctl(t, world.Pod, "ipv4/tcp_max_tw_buckets", "0")
	sysctl(t, world.Outside, "ipv4/tcp_max_tw_buckets", "0")
	return &testPod{world: world, kernel: k}
}

func sysctl(t *testing.T, ns *nettest.Namespace, name, value string) {
	t.Helper()
	if err := ns.Do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) }); err != nil {
		t.Fatal(err)
	}
}

// forEachKernel runs a test with each, all at once.
func forEachKernel(t *testing.T, test func(t *testing.T, k kernel, number int)) {
	nettest.RequireNetns(t)
	for i, k := range kernels(t) {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			test(t, k, i)
		})
	}
}

// program puts a ruleset in the place of the one before, and has connection tracking forget everything.
func (p *testPod) program(t *testing.T, rs rules.Ruleset, families []rules.Family) {
	t.Helper()
	err := testcase.Inside(t, p.world.Pod, func(ctx context.Context, lock *os.File) error { return p.replace(ctx, lock, rs, families) })
	if err != nil {
		t.Fatal(err)
	}
	p.rs = rs
}

func (p *testPod) replace(ctx context.Context, lock *os.File, rs rules.Ruleset, families []rules.Family) error {
	if err := route.Remove(p.rs.Setup, rules.Families); err != nil {
		return err
	}
	if err := p.kernel.program(ctx, lock, rs, p.rs, families); err != nil {
		return err
	}
	if err := route.Apply(rs.Setup, families); err != nil {
		return err
	}
	return netlink.ConntrackTableFlush(netlink.ConntrackTable)
}

// ways says how the packet enters the pod: once for each family that it has.
func ways(n nettest.Packet) []trace.Packet {
	p := trace.Packet{Direction: trace.Out, Protocol: protocols[n.Protocol], UID: n.UID, GID: n.GID, Dst: n.Dst}
	if n.Direction == nettest.Out {
		p.Src = netip.AddrPortFrom(n.Src, sourcePort)
		return []trace.Packet{p}
	}
	p.Direction = trace.In
	if n.Direction == nettest.Guest {
		p.Interface = nettest.GuestLink
		p.Src = netip.AddrPortFrom(ofFamilyOf(n.Dst.Addr(), nettest.GuestIPv4, nettest.GuestIPv6), sourcePort)
		return []trace.Packet{p}
	}
	p.Interface = nettest.PodLink
	to := []netip.Addr{nettest.PodIPv4, nettest.PodIPv6}
	if n.Via != "" {
		p.Interface = n.Via
		to = []netip.Addr{nettest.Net1IPv4, nettest.Net1IPv6}
	}
	var all []trace.Packet
	for i, f := range []nettest.Families{nettest.IPv4, nettest.IPv6} {
		if n.Families&f != 0 {
			q := p
			q.Dst = netip.AddrPortFrom(to[i], n.Dst.Port())
			q.Src = netip.AddrPortFrom(to[i].Prev(), sourcePort) // outside's end
			all = append(all, q)
		}
	}
	return all
}

const sourcePort = 40000

var protocols = map[nettest.Protocol]uint8{nettest.TCP: unix.IPPROTO_TCP, nettest.UDP: unix.IPPROTO_UDP}

func ofFamilyOf(a, v4, v6 netip.Addr) netip.Addr {
	if a.Is4() {
		return v4
	}
	return v6
}

// outcome is the walk's answer for what was sent to dst, as nettest says it of a pod with proxies at these ports.
func outcome(w trace.Way, protocol uint8, dst netip.AddrPort, proxies []uint16) string {
	port, original := w.Packet.To.Port(), dst.String()
	if w.Packet.CTZone != 0 {
		original = "unknown" // a socket asks for it in zone 0
	}
	switch w.Verdict {
	case trace.Dropped:
		return "error: timeout"
	case trace.Rejected:
		return "error: reset"
	case trace.Unknown:
		return "unknown: " + w.Reason
	case trace.TProxied:
		port = w.Port
		if w.Packet.To.Port() != port { // else the listener asks connection tracking
			original = w.Packet.To.String()
		}
	case trace.Accepted, trace.Redirected:
	}
	name := "app"
	switch {
	case !w.Packet.Local:
		name = "outside"
	case slices.Contains(proxies, port) && protocol == unix.IPPROTO_TCP && original != dst.String():
		return fmt.Sprintf("proxy %d original %s", port, original)
	case slices.Contains(proxies, port):
		return fmt.Sprintf("proxy %d", port)
	}
	if port != dst.Port() {
		return fmt.Sprintf("%s %d", name, port)
	}
	return name
}

// predict walks the packet and says what World.Send will return, and by which ways.
func predict(ns *trace.Namespace, n nettest.Packet, proxies []uint16) (string, []trace.Result, error) {
	var outcomes []string
	var results []trace.Result
	for _, p := range ways(n) {
		r, err := trace.Walk(ns, p)
		if err == nil && len(r.Ways) != 1 {
			err = fmt.Errorf("%s goes %d ways", p, len(r.Ways))
		}
		if err != nil {
			return "", nil, err
		}
		outcomes = append(outcomes, outcome(r.Ways[0], p.Protocol, p.Dst, proxies))
		results = append(results, r)
	}
	if len(outcomes) == 2 && outcomes[0] != outcomes[1] {
		return fmt.Sprintf("IPv4 %s, IPv6 %s", outcomes[0], outcomes[1]), results, nil
	}
	return outcomes[0], results, nil
}

// read reads the pod's namespace as it is now.
func (p *testPod) read(t *testing.T) *trace.Namespace {
	t.Helper()
	var ns *trace.Namespace
	err := p.world.Pod.Do(func() (err error) {
		ns, err = Read()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// differences sends the packets and says where one doesn't end where the walk says, or a rule of table nat has not been
// matched as often.
func (p *testPod) differences(t *testing.T, packets []nettest.Packet) []string {
	t.Helper()
	if err := p.world.Serve(packets, proxyPorts...); err != nil {
		t.Fatal(err)
	}
	var all []string
	hits := map[rules.Family]map[string]int{rules.IPv4: {}, rules.IPv6: {}}
	ns := p.read(t)
	for _, n := range eachFamily(packets) {
		sent, _, _ := strings.Cut(n.String(), " ->")
		want, results, err := predict(ns, n, proxyPorts)
		if err != nil {
			t.Fatalf("%s: %v", sent, err)
		}
		if strings.Contains(want, nettest.ErrTimeout.Error()) {
			n.Want = nettest.Outcome{Kind: nettest.Failed, Err: nettest.ErrTimeout} // then Send doesn't wait for long
		}
		got, err := p.world.Send(n)
		if err != nil {
			t.Fatalf("send %s: %v", sent, err)
		}
		if got != want {
			all = append(all, fmt.Sprintf("%s: the kernel says %s, the walk says %s\n%v", sent, got, want, steps(results)))
		}
		count(hits, results)
	}
	if !p.kernel.counts {
		return all
	}
	// An answer in another zone than its question begins a connection of its own, which isn't counted here.
	if slices.ContainsFunc(p.rs.Rules, func(r rules.Rule) bool { _, ok := r.Target.(rules.Zone); return ok }) {
		return all
	}
	return append(all, p.counterDifferences(t, hits)...)
}

// eachFamily parts the packets that have both families: one may be dropped and the other not.
func eachFamily(packets []nettest.Packet) []nettest.Packet {
	var all []nettest.Packet
	for _, n := range packets {
		for _, f := range []nettest.Families{nettest.IPv4, nettest.IPv6} {
			if n.Families&f != 0 {
				one := n
				one.Families = f
				all = append(all, one)
			}
		}
	}
	return all
}

// steps are the rules that the packet matched, for a reader.
func steps(results []trace.Result) string {
	var b strings.Builder
	for _, r := range results {
		fmt.Fprintln(&b, r.Packet)
		for _, s := range r.Ways[0].Steps {
			if s.Rule != nil && s.Missed == "" {
				fmt.Fprintf(&b, "  %s: %s %s\n", s.Rule, s.Rule.Text, s.Effect)
			}
		}
	}
	return b.String()
}

// count notes each rule of table nat that the walks matched, as CHAIN NUMBER.
func count(hits map[rules.Family]map[string]int, results []trace.Result) {
	for _, r := range results {
		for _, s := range r.Ways[0].Steps {
			if s.Rule != nil && s.Missed == "" && s.Chain.Table.Name == "nat" {
				hits[rules.Of(r.Packet.Dst.Addr())][fmt.Sprintf("%s %d", s.Chain.Name, s.Rule.Number)]++
			}
		}
	}
}

// counterDifferences compares which rules of table nat, which sees one packet of a connection, the kernel matched with the
// walks. More often is no difference: a packet that comes after its connection's end begins another one.
func (p *testPod) counterDifferences(t *testing.T, hits map[rules.Family]map[string]int) []string {
	t.Helper()
	var all []string
	for f, want := range hits {
		for chain, counts := range p.counters(t, f) {
			for i, n := range counts {
				if key := fmt.Sprintf("%s %d", chain, i+1); n < want[key] || n > 0 && want[key] == 0 {
					all = append(all, fmt.Sprintf("%s: the kernel matched rule %s %d times, the walks %d times", f, key, n, want[key]))
				}
			}
		}
	}
	return all
}

// counters are how many packets each rule of table nat has matched, by chain.
func (p *testPod) counters(t *testing.T, f rules.Family) map[string][]int {
	t.Helper()
	program := p.kernel.name + "-save"
	if f == rules.IPv6 {
		program = "ip6" + strings.TrimPrefix(program, "ip")
	}
	var out []byte
	err := p.world.Pod.Do(func() (err error) {
		cmd := exec.Command(program, "-c", "-t", "nat")
		cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE=/proc/self/stat")
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	counts := map[string][]int{}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[1] == "-A" { // [PACKETS:BYTES] -A CHAIN
			packets, _, _ := strings.Cut(fields[0][1:], ":")
			n, err := strconv.Atoi(packets)
			if err != nil {
				t.Fatalf("%s: %q: %v", program, line, err)
			}
			counts[fields[2]] = append(counts[fields[2]], n)
		}
	}
	return counts
}
