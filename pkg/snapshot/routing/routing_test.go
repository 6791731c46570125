package routing_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/snapshot/routing"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func ip(t *testing.T, ns *nettest.Namespace, stdin string, args ...string) []byte {
	t.Helper()
	var out []byte
	err := ns.Do(func() (err error) {
		cmd := exec.Command("ip", args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err = cmd.Output()
		return err
	})
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Fatalf("ip %q: %v: %s", args, err, exit.Stderr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// informs are ip's keys that decide nothing, by listing.
var informs = map[string][]string{
	"routes": {"protocol"},
	"rules":  {"protocol", "iif_detached", "oif_detached"},
	"addresses": {
		"ifindex", "mtu", "qdisc", "group", "txqlen", "link_type", "address", "broadcast", "link", "link_index", "link_netnsid", "master",
		"min_mtu", "max_mtu",
	},
	"addr_info": {"label", "valid_life_time", "preferred_life_time", "nodad", "noprefixroute", "dynamic", "mngtmpaddr", "metric"},
}

func entries(t *testing.T, listing []byte, kind string) (all []any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(listing))
	for d.More() {
		var list []map[string]any
		if err := d.Decode(&list); err != nil {
			t.Fatalf("%v in %s", err, listing)
		}
		for _, e := range list {
			without(e, kind)
			all = append(all, e)
		}
	}
	return all
}

func without(e map[string]any, kind string) {
	for _, key := range informs[kind] {
		delete(e, key)
	}
	if flags, ok := e["flags"].([]any); ok {
		e["flags"] = slices.DeleteFunc(flags, func(f any) bool { return f == "M-DOWN" }) // that of a link's peer
	}
	infos, _ := e["addr_info"].([]any)
	for _, info := range infos {
		without(info.(map[string]any), "addr_info")
	}
}

// listing is what ip says.
func listing(t *testing.T, ns *nettest.Namespace) routing.Listing {
	t.Helper()
	return routing.Listing{
		Routes: ip(t, ns, "", "-j", "route", "show", "table", "all"), Addresses: ip(t, ns, "", "-j", "address"),
		Rules: append(ip(t, ns, "", "-j", "rule"), ip(t, ns, "", "-6", "-j", "rule")...),
	}
}

// compare waits until the kernel has noticed which links are up: until ip says the same before and after Read.
func compare(t *testing.T, ns *nettest.Namespace) {
	t.Helper()
	var got routing.Listing
	want := listing(t, ns)
	for deadline := time.Now().Add(nettest.Patience); ; {
		err := ns.Do(func() (err error) {
			got, err = routing.Read()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		again := listing(t, ns)
		if reflect.DeepEqual(want, again) {
			break
		}
		if want = again; time.Now().After(deadline) {
			t.Fatal("the links never keep still")
		}
	}
	compareEntries(t, "routes", got.Routes, want.Routes)
	compareEntries(t, "addresses", got.Addresses, want.Addresses)
	compareEntries(t, "rules", got.Rules, want.Rules)
}

func compareEntries(t *testing.T, kind string, ours, theirs []byte) {
	t.Helper()
	got, want := entries(t, ours, kind), entries(t, theirs, kind)
	if len(got) != len(want) {
		t.Errorf("%d %s, ip has %d", len(got), kind, len(want))
	}
	for i := range min(len(got), len(want)) {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("%s: entry %d is\n%v, ip says\n%v", kind, i, got[i], want[i])
		}
	}
}

// batch4 and batch6 are for `ip -batch`, for a family each.
const (
	batch4 = `link add eth0 type veth peer name eth1
link add eth2 type veth peer name eth3
link set eth0 up
link set eth1 up
link set eth2 up
address add 10.0.0.2/24 brd + dev eth0
address add 10.0.0.3/24 dev eth0
address add 10.9.0.1 peer 10.9.0.2/32 dev eth0
address add 169.254.1.1/32 scope link dev eth0
address add 2001:db8::2/64 dev eth0 nodad
address add 2001:db8:1::2/64 dev eth2
address add 2001:db8:2::2/128 dev eth0 nodad preferred_lft 0
route add default via 10.0.0.1
route add default via 10.0.0.9 metric 100
route add 10.1.0.0/16 via 10.0.0.1 src 10.0.0.3
route add 10.2.0.1 dev eth0
route add 10.3.0.0/16 via 192.168.77.1 dev eth0 onlink
route add blackhole 10.4.0.0/16
route add unreachable 10.5.0.0/16 metric 7
route add prohibit 10.6.0.0/16
route add throw 10.7.0.0/16 table 100
route add local 10.8.0.0/16 dev lo table 100
route add local default dev lo table 133
route add 10.10.0.0/16 nexthop via 10.0.0.1 weight 3 nexthop via 10.0.0.9 dev eth0
route add 10.11.0.0/16 via inet6 2001:db8::1 dev eth0
route add 10.12.0.0/16 via 10.0.0.1 tos 0x10
route add 10.13.0.0/16 dev eth2 table 1000
rule add fwmark 0x539 lookup 133
rule add fwmark 0x10/0xf0 lookup 100 priority 50
rule add not from 10.0.0.0/24 to 10.96.0.0/12 iif eth0 lookup 100 priority 60
rule add from 10.0.0.2 oif eth2 lookup 1000 priority 70
rule add uidrange 1000-2000 lookup 100 priority 80
rule add ipproto tcp sport 80 dport 1000-2000 lookup 100 priority 90
rule add ipproto 47 blackhole priority 100
rule add priority 110 goto 32766
rule add priority 120 goto 32000
rule add priority 130 nop
rule add iif nowhere unreachable priority 140
rule add lookup main suppress_prefixlength 0 priority 150
rule add tos 0x10 prohibit priority 160
`
	batch6 = `route add default via 2001:db8::1
route add 2001:db8:5::/48 via 2001:db8::9 metric 5 pref high
route add blackhole 2001:db8:6::/48
route add unreachable default metric 4278198272
route add local default dev lo table 100
route add 2001:db8:7::/48 nexthop via 2001:db8::5 weight 2 nexthop via 2001:db8::6
route add 2001:db8:8::/48 from 2001:db8::/64 via 2001:db8::5
rule add from 2001:db8::/64 lookup 100 priority 70
rule add fwmark 7 to 2001:db8::1 prohibit priority 80
`
)

func TestReadSaysWhatIpSays(t *testing.T) {
	t.Parallel()
	nettest.RequireProgram(t, "ip")
	ns := nettest.StartNamespace(t, "routing")
	compare(t, ns)
	ip(t, ns, batch4, "-batch", "-")
	ip(t, ns, batch6, "-6", "-batch", "-")
	compare(t, ns)
	ip(t, ns, "", "link", "set", "eth1", "down") // the routes over eth0 stay
	compare(t, ns)
}
