package route

import (
	"errors"
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

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// tproxy is what istio's interception by TPROXY needs.
func tproxy() rules.Setup {
	return rules.Setup{
		Loopback: []netip.Prefix{netip.MustParsePrefix("::6/128")},
		Routes:   []rules.LocalRoute{{Mark: 1337, Table: 133}},
	}
}

// tproxyByIP makes the same with the kernel's own tool.
const tproxyByIP = `
	ip rule add fwmark 1337 lookup 133
	ip route add local default dev lo table 133
	ip -6 addr add ::6/128 dev lo nodad
	ip -6 rule add fwmark 1337 lookup 133
	ip -6 route add local default dev lo table 133`

// shell runs a script in the namespace and returns what it prints.
func shell(t testing.TB, ns *nettest.Namespace, script string) string {
	t.Helper()
	nettest.RequireProgram(t, "ip")
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.Command("sh", "-ec", script).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// dump is all that Apply may change.
func dump(t testing.TB, ns *nettest.Namespace) string {
	t.Helper()
	awaitLocalRoutes(t, ns)
	return shell(t, ns, `for f in -4 -6; do
		ip -N -d $f rule
		ip -N -d $f route show table all
		ip -N -d $f addr show dev lo
	done`)
}

// awaitLocalRoutes waits for what the kernel makes of its own some time after an IPv6 address: a route for each.
func awaitLocalRoutes(t testing.TB, ns *nettest.Namespace) {
	t.Helper()
	const addresses, routes = "ip -6 addr | grep inet6 | wc -l", "ip -6 route show table local type local proto kernel | wc -l"
	for deadline := time.Now().Add(nettest.Patience); shell(t, ns, addresses) != shell(t, ns, routes); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("an address has no local route:\n%s", shell(t, ns, "ip -6 addr; ip -6 route show table local"))
		}
	}
}

func apply(ns *nettest.Namespace, s rules.Setup) error {
	return ns.Do(func() error { return Apply(s, rules.Families) })
}

func mustApply(t testing.TB, ns *nettest.Namespace, s rules.Setup) {
	t.Helper()
	if err := apply(ns, s); err != nil {
		t.Fatal(err)
	}
}

func mustRemove(t testing.TB, ns *nettest.Namespace, s rules.Setup) {
	t.Helper()
	if err := ns.Do(func() error { return Remove(s, rules.Families) }); err != nil {
		t.Fatal(err)
	}
}

func differences(t testing.TB, ns *nettest.Namespace, s rules.Setup) []string {
	t.Helper()
	var found []string
	err := ns.Do(func() (err error) {
		found, err = Differences(s, rules.Families)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func wantDump(t testing.TB, ns *nettest.Namespace, after, want string) {
	t.Helper()
	if got := dump(t, ns); got != want {
		t.Errorf("after %s:\n%s\nwant\n%s", after, got, want)
	}
}

func TestApplyMakesWhatTheIPCommandsMake(t *testing.T) {
	for name, c := range map[string]struct {
		setup rules.Setup
		byIP  string
	}{
		"istio's":       {tproxy(), tproxyByIP},
		"a large table": {rules.Setup{Routes: []rules.LocalRoute{{Mark: 0xffffffff, Table: 1000}}}, strings.NewReplacer("1337", "0xffffffff", "133", "1000", "ip -6 addr add ::6/128 dev lo nodad", "").Replace(tproxyByIP)},
		"two marks for a table": {rules.Setup{Routes: []rules.LocalRoute{{Mark: 1, Table: 7}, {Mark: 2, Table: 7}}}, `
			for f in -4 -6; do for m in 1 2; do ip $f rule add fwmark $m lookup 7; done; ip $f route add local default dev lo table 7; done`},
		"IPv4 addresses": {rules.Setup{Loopback: []netip.Prefix{netip.MustParsePrefix("127.0.0.6/32"), netip.MustParsePrefix("10.1.2.3/24")}}, `
			ip addr add 127.0.0.6/32 dev lo; ip addr add 10.1.2.3/24 dev lo`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			oracle, ours := nettest.StartNamespace(t, "oracle"), nettest.StartNamespace(t, "ours")
			before := dump(t, ours)
			shell(t, oracle, c.byIP)
			want := dump(t, oracle)
			if want == before {
				t.Fatalf("the dump doesn't show what ip has made:\n%s", want)
			}
			for _, run := range []string{"Apply", "a second Apply"} {
				mustApply(t, ours, c.setup)
				wantDump(t, ours, run, want)
			}
			mustApply(t, oracle, c.setup)
			wantDump(t, oracle, "Apply over what ip has made", want)
			for _, ns := range []*nettest.Namespace{oracle, ours} {
				if found := differences(t, ns, c.setup); found != nil {
					t.Errorf("differences: %q", found)
				}
				for _, run := range []string{"Remove", "a second Remove"} {
					mustRemove(t, ns, c.setup)
					wantDump(t, ns, run, before)
				}
			}
		})
	}
}

func TestTheKernelDeliversMarkedPacketsLocally(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	mustApply(t, w.Pod, tproxy())
	for _, addr := range []string{"1.1.1.1", "2001:db8::1"} {
		marked, plain := shell(t, w.Pod, "ip route get "+addr+" mark 1337"), shell(t, w.Pod, "ip route get "+addr)
		if !strings.HasPrefix(marked, "local "+addr) || !strings.Contains(marked, "dev lo table 133") {
			t.Errorf("with the mark: %s", marked)
		}
		if !strings.Contains(plain, "dev "+nettest.PodLink) {
			t.Errorf("without: %s", plain)
		}
	}
}

// What stands ahead of main, as a plugin for source-based routing has it, must not catch marked packets first.
func TestANewRuleIsAheadOfThoseOfOthers(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	shell(t, w.Pod, "ip route add default via 10.77.0.1 table 100; ip rule add from 10.77.0.2 lookup 100 pref 50")
	mustApply(t, w.Pod, tproxy())
	if got := shell(t, w.Pod, "ip route get 1.1.1.1 from 10.77.0.2 mark 1337"); !strings.HasPrefix(got, "local ") {
		t.Errorf("got %s", got)
	}
}

func TestApplyCompletesWhatItFinds(t *testing.T) {
	fresh := nettest.StartNamespace(t, "fresh")
	mustApply(t, fresh, tproxy())
	want := dump(t, fresh)
	for name, script := range map[string]string{
		"rules without routes": "ip rule add fwmark 1337 lookup 133; ip -6 rule add fwmark 1337 lookup 133",
		"routes without rules": "ip route add local default dev lo table 133; ip -6 route add local default dev lo table 133",
		"one family":           "ip rule add fwmark 1337 lookup 133; ip route add local default dev lo table 133",
		"the address":          "ip addr add ::6/128 dev lo nodad",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := nettest.StartNamespace(t, "partial")
			shell(t, ns, script)
			mustApply(t, ns, tproxy())
			wantDump(t, ns, "Apply", want)
		})
	}
}

// Copies differ in their priority or metric; the first one wins in the kernel, so that one stays.
func TestApplyLeavesOneOfSeveralCopies(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "copies")
	shell(t, ns, `for f in -4 -6; do
		ip $f rule add fwmark 1337 lookup 133 pref 40
		ip $f rule add fwmark 1337 lookup 133 pref 50
		ip $f rule add fwmark 1337 lookup 133 pref 30
		ip $f route add local default dev lo table 133 metric 9
		ip $f route add local default dev lo table 133 metric 2000
	done`)
	twice := rules.Setup{Routes: append(tproxy().Routes, tproxy().Routes...)}
	mustApply(t, ns, twice)
	got := shell(t, ns, "for f in -4 -6; do ip $f rule; ip $f route show table 133; done")
	if strings.Count(got, "fwmark") != 2 || strings.Count(got, "30:\tfrom all fwmark 0x539 lookup 133") != 2 ||
		strings.Count(got, "local default") != 2 || strings.Count(got, "metric 9 ") != 2 {
		t.Errorf("got\n%s", got)
	}
	if found := differences(t, ns, twice); found != nil {
		t.Errorf("differences: %q", found)
	}
	mustRemove(t, ns, twice)
	if got := shell(t, ns, "ip rule; ip -6 rule"); strings.Contains(got, "fwmark") {
		t.Errorf("Remove left\n%s", got)
	}
}

func TestWhatDoesTheSameWillDo(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "same")
	before := dump(t, ns)
	shell(t, ns, `for f in -4 -6; do
		ip $f rule add fwmark 1337 lookup 133 pref 7 protocol static
		ip $f route add local default dev lo table 133 metric 9 protocol static
	done
	ip addr add 10.1.2.3/24 brd + dev lo label lo:1`)
	err := ns.Do(func() error {
		return withKernel(rules.Setup{Loopback: tproxy().Loopback}, rules.Families, func(k kernel, objects []object) error {
			withMaker := objects[0]
			withMaker.attributes = append(withMaker.attributes, netlink.Attribute{Kind: ifaProto, Data: []byte{9}}) // ip 6.1 can't
			return k.add(withMaker)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	made := dump(t, ns)
	s := tproxy()
	s.Loopback = append(s.Loopback, netip.MustParsePrefix("10.1.2.3/24"))
	if found := differences(t, ns, s); found != nil {
		t.Errorf("differences: %q", found)
	}
	mustApply(t, ns, s)
	wantDump(t, ns, "Apply", made)
	mustRemove(t, ns, s)
	wantDump(t, ns, "Remove", before)
}

// foreign resembles what Apply makes in all but one respect each.
const foreign = `for f in -4 -6; do
	ip $f rule add fwmark 1337 lookup 134
	ip $f rule add fwmark 1338 lookup 133
	ip $f rule add fwmark 1337/0xffff lookup 133
	ip $f rule add not fwmark 1337 lookup 133
	ip $f rule add fwmark 1337 iif lo lookup 133
	ip $f rule add fwmark 1337 oif lo lookup 133
	ip $f rule add fwmark 1337 tos 4 lookup 133
	ip $f rule add fwmark 1337 ipproto tcp dport 80 lookup 133
	ip $f rule add fwmark 1337 uidrange 5-6 lookup 133
	ip $f rule add fwmark 1337 lookup 133 suppress_prefixlength 0
	ip $f rule add fwmark 1337 blackhole
	ip $f rule add fwmark 1337 lookup 133 prohibit
	ip $f rule add lookup 133
	ip $f route add local default dev lo table 134
	ip $f route add blackhole default table 133 metric 3000
	ip $f route add default dev lo table 133 metric 3001
	ip $f route add local default dev other table 133 metric 3002
done
ip rule add fwmark 1337 from 10.0.0.0/8 lookup 133
ip rule add fwmark 1337 to 10.0.0.0/8 lookup 133
ip -6 rule add fwmark 1337 from fd00::/8 lookup 133
ip -6 rule add fwmark 1337 to fd00::/8 lookup 133
ip route add local default tos 4 dev lo table 133
ip route add local 10.0.0.0/8 dev lo table 133
ip -6 route add local fd00::/8 dev lo table 133
ip -6 route add local default from fd00::/8 dev lo table 133
ip addr add ::6/128 dev other nodad
ip addr add ::7/128 dev lo nodad`

func TestWhatIsAnothersStays(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "foreign")
	shell(t, ns, "ip link add other type veth peer name end; ip link set other up;"+foreign)
	before := dump(t, ns)
	want := []string{
		"IPv4: ip rule fwmark 1337 lookup 133 is missing",
		"IPv4: local route on lo in table 133 is missing",
		"IPv6: address ::6/128 on lo is missing",
		"IPv6: ip rule fwmark 1337 lookup 133 is missing",
		"IPv6: local route on lo in table 133 is missing",
	}
	if found := differences(t, ns, tproxy()); !slices.Equal(found, want) {
		t.Errorf("what is another's is taken for ours: %q", found)
	}
	mustRemove(t, ns, tproxy())
	wantDump(t, ns, "Remove of nothing", before)
	mustApply(t, ns, tproxy())
	after := dump(t, ns)
	for line := range strings.Lines(before) {
		if !strings.Contains(after, line) {
			t.Errorf("Apply lost %s", line)
		}
	}
	mustRemove(t, ns, tproxy())
	wantDump(t, ns, "Apply and Remove", before)
}

func TestDifferences(t *testing.T) {
	for script, want := range map[string][]string{
		"true":                               nil,
		"ip rule del fwmark 1337":            {"IPv4: ip rule fwmark 1337 lookup 133 is missing"},
		"ip rule add fwmark 1337 lookup 133": {"IPv4: ip rule fwmark 1337 lookup 133 is there 2 times"},
		"ip route flush table 133":           {"IPv4: local route on lo in table 133 is missing"},
		"ip route add local default dev lo table 133 metric 5":    {"IPv4: local route on lo in table 133 is there 2 times"},
		"ip addr del ::6/128 dev lo":                              {"IPv6: address ::6/128 on lo is missing"},
		"ip -6 rule del fwmark 1337":                              {"IPv6: ip rule fwmark 1337 lookup 133 is missing"},
		"ip -6 rule add fwmark 1337 lookup 133":                   {"IPv6: ip rule fwmark 1337 lookup 133 is there 2 times"},
		"ip -6 route flush table 133":                             {"IPv6: local route on lo in table 133 is missing"},
		"ip -6 route add local default dev lo table 133 metric 5": {"IPv6: local route on lo in table 133 is there 2 times"},
		"ip rule del fwmark 1337; ip -6 addr flush dev lo; ip -6 route flush table 133": {
			"IPv4: ip rule fwmark 1337 lookup 133 is missing",
			"IPv6: address ::6/128 on lo is missing",
			"IPv6: local route on lo in table 133 is missing",
		},
	} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			ns := nettest.StartNamespace(t, "differences")
			mustApply(t, ns, tproxy())
			shell(t, ns, script)
			if found := differences(t, ns, tproxy()); !slices.Equal(found, want) {
				t.Errorf("got %q, want %q", found, want)
			}
			mustApply(t, ns, tproxy())
			if found := differences(t, ns, tproxy()); found != nil {
				t.Errorf("after Apply: %q", found)
			}
		})
	}
}

func TestOnlyTheFamiliesThatAreAskedFor(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "one")
	for i, f := range rules.Families {
		other := rules.Families[1-i]
		before := dump(t, ns)
		err := ns.Do(func() error { return Apply(tproxy(), []rules.Family{f}) })
		if err != nil {
			t.Fatal(err)
		}
		found := differences(t, ns, tproxy())
		if len(found) == 0 || slices.ContainsFunc(found, func(d string) bool { return !strings.HasPrefix(d, other.String()) }) {
			t.Errorf("after Apply for %s: %q", f, found)
		}
		if err := ns.Do(func() error { return Remove(tproxy(), []rules.Family{other}) }); err != nil {
			t.Error(err)
		}
		if err := ns.Do(func() error { return Remove(tproxy(), []rules.Family{f}) }); err != nil {
			t.Error(err)
		}
		wantDump(t, ns, "Remove", before)
	}
}

func TestAFailureLeavesWhatWasThereAndIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		script, want string
		is           error
	}{
		"IPv6 is disabled": {"sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
			"add IPv6 address ::6/128 on lo: permission denied (the kernel says: ipv6: IPv6 is disabled on this device)", unix.EACCES},
		"another's default route in the table": {"ip route add unreachable default table 133",
			"add IPv4 local route on lo in table 133: file exists", unix.EEXIST},
		"another's IPv6 default route in the table": {"ip -6 route add unreachable default table 133 metric 1024; ip rule add fwmark 1337 lookup 133; ip rule add fwmark 1337 lookup 133",
			"add IPv6 local route on lo in table 133: file exists", unix.EEXIST},
		"the address with another length": {"ip addr add ::6/64 dev lo",
			"add IPv6 address ::6/128 on lo: file exists (the kernel says: ipv6: address already assigned)", unix.EEXIST},
		"lo is down": {"ip link set lo down",
			"add IPv6 local route on lo in table 133: network is down (the kernel says: Nexthop device is not up)", unix.ENETDOWN},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := nettest.StartNamespace(t, "failure")
			shell(t, ns, c.script)
			before := dump(t, ns)
			err := apply(ns, tproxy())
			if !errors.Is(err, c.is) || err.Error() != c.want {
				t.Errorf("got error %v, want %s", err, c.want)
			}
			wantDump(t, ns, "Apply", before)
			if len(differences(t, ns, tproxy())) == 0 {
				t.Error("no differences")
			}
			mustRemove(t, ns, tproxy())
		})
	}
}

func TestDisabledIPv6IsMissingAndNoErrorToRemove(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "disabled")
	mustApply(t, ns, tproxy())
	shell(t, ns, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1") // which takes addresses and routes away
	want := []string{"IPv6: address ::6/128 on lo is missing", "IPv6: local route on lo in table 133 is missing"}
	if found := differences(t, ns, tproxy()); !slices.Equal(found, want) {
		t.Errorf("got %q, want %q", found, want)
	}
	mustRemove(t, ns, tproxy())
	if got := shell(t, ns, "ip rule; ip -6 rule; ip route show table all"); strings.Contains(got, "133") {
		t.Errorf("left:\n%s", got)
	}
}

// A kernel without IPv6 is not to be had, but any kernel lacks some family.
func TestAFamilyThatTheKernelLacksHasNothing(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "lacking")
	mustApply(t, ns, tproxy())
	err := ns.Do(func() error {
		return withKernel(tproxy(), rules.Families, func(k kernel, objects []object) error {
			for _, o := range objects {
				o.header[0] = unix.AF_DECnet
				if found, err := k.find(o); err != nil || found != nil {
					t.Errorf("%s: got %v, %v", o.name, found, err)
				}
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWithoutPrivilege(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "unprivileged")
	unprivileged := func(fn func(rules.Setup, []rules.Family) error) error {
		return ns.DoUnprivileged(func() error { return fn(tproxy(), rules.Families) })
	}
	before := dump(t, ns)
	err := unprivileged(Apply)
	if !errors.Is(err, unix.EPERM) || err.Error() != "add IPv4 rule fwmark 1337 lookup 133: operation not permitted" {
		t.Errorf("got error %v", err)
	}
	wantDump(t, ns, "Apply", before)
	mustApply(t, ns, tproxy())
	applied := dump(t, ns)
	err = unprivileged(Remove)
	want := `remove IPv6 local route on lo in table 133: operation not permitted
remove IPv6 rule fwmark 1337 lookup 133: operation not permitted
remove IPv6 address ::6/128 on lo: operation not permitted
remove IPv4 local route on lo in table 133: operation not permitted
remove IPv4 rule fwmark 1337 lookup 133: operation not permitted`
	if !errors.Is(err, unix.EPERM) || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
	wantDump(t, ns, "Remove", applied)
}

// A socket would be allocated.
func TestNothingToDoOpensNoSocket(t *testing.T) {
	v6, v4 := rules.Setup{Loopback: tproxy().Loopback}, []rules.Family{rules.IPv4}
	allocated := testing.AllocsPerRun(10, func() {
		for _, s := range []rules.Setup{{}, v6} {
			found, err := Differences(s, v4)
			if err := errors.Join(Apply(s, v4), Remove(s, v4), err); err != nil || found != nil {
				t.Errorf("%v: %q, %v", s, found, err)
			}
		}
	})
	if allocated != 0 {
		t.Errorf("%v allocations", allocated)
	}
}

func BenchmarkApplyAndRemove(b *testing.B) {
	ns := nettest.StartNamespace(b, "bench")
	err := ns.Do(func() error {
		for b.Loop() {
			if err := errors.Join(Apply(tproxy(), rules.Families), Remove(tproxy(), rules.Families)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
