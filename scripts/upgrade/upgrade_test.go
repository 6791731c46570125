package upgrade

import (
	"os"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/testcase"
)

const root = "../.."

// programs are this version's.
var programs = nettest.Programs(root + "/plugin/...")

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// Each earlier version and this one, in both orders: an upgrade, and the way back.
func TestUpgradesAndTheWayBack(t *testing.T) {
	nettest.RequireNetns(t)
	for _, name := range Versions(t) {
		then, now := version{name, Build(t, name) + "/bin"}, version{"this version", programs(t)}
		for _, pair := range [][2]version{{then, now}, {now, then}} {
			t.Run(pair[0].name+" to "+pair[1].name, func(t *testing.T) {
				for _, test := range tests {
					t.Run(test.name, func(t *testing.T) { test.run(t, pair[0], pair[1]) })
				}
			})
		}
	}
}

// tests are run with the version that began, and the one that goes on.
var tests = []struct {
	name string
	run  func(t *testing.T, first, second version)
}{
	{"serves the pods", servesThePods},
	{"shares a pod", sharesAPod},
	{"leaves alone", leavesAlone},
	{"asks the agent", asksAnothersAgent},
}

var backends = []string{"nftables", "iptables"}

// cases are of every mesh, and of every kind of rule and setup.
var cases = []string{
	"osm/defaults", "osm/guide", "osm/after-proxy-start", "osm-v1/inclusions", "osm-v1/init-containers-direct", "osm-edge/defaults",
	"osm-edge/local-dns-proxy", "fsm/defaults", "fsm/exclusions", "istio/defaults", "istio/everything-at-once", "istio/tproxy-ipv6",
}

// eachCase runs a test, in parallel, for each of the cases with each backend that can do it.
func eachCase(t *testing.T, test func(t *testing.T, p *pod)) {
	t.Helper()
	for _, name := range cases {
		c := testcase.Find(t, root, name)
		for _, backend := range backends {
			if backend == "iptables" && c.Section("want.iptables") == "" {
				continue
			}
			t.Run(name+"/"+backend, func(t *testing.T) {
				t.Parallel()
				p := newPod(t, c)
				p.conf["backend"] = backend
				test(t, p)
			})
		}
	}
}

// begin is an ADD by a version that may not know the case yet, unless it is a mesh's defaults.
func (p *pod) begin(v version) {
	p.t.Helper()
	if err := p.try(v, "ADD"); err != nil && !strings.Contains(p.t.Name(), "/defaults/") {
		p.t.Skipf("not yet in this version: %v", err)
	} else if err != nil {
		p.t.Fatal(err)
	}
}

// One version finds what another has programmed as it should be, programs it again as if the other had not been there, and takes all
// of it out.
func servesThePods(t *testing.T, first, second version) {
	eachCase(t, func(_ *testing.T, p *pod) {
		p.begin(first)
		programmed := p.holds()
		p.run(second, "CHECK")
		p.same("after CHECK", programmed)
		p.run(second, "DEL")
		p.nothing()

		p.run(first, "ADD")
		p.begin(second)
		p.run(first, "CHECK")
		p.run(first, "DEL")
		p.nothing()

		p.run(first, "ADD")
		p.conf["cni.dev/valid-attachments"] = []any{map[string]any{"containerID": "c1", "ifname": "eth0"}}
		p.run(second, "GC")
		p.run(second, "CHECK")
		p.conf["cni.dev/valid-attachments"] = []any{}
		p.run(second, "DEL")
		p.run(second, "GC")
		p.nothing()
	})
}

// A pod's interfaces are of different versions.
func sharesAPod(t *testing.T, first, second version) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			eth0 := newPod(t, testcase.Find(t, root, "osm/defaults"))
			eth0.conf["backend"] = backend
			net1 := eth0.another("net1")
			eth0.run(first, "ADD")
			programmed := eth0.rules()
			net1.run(second, "ADD")
			for _, v := range []version{first, second} {
				eth0.run(v, "CHECK")
				net1.run(v, "CHECK")
			}
			net1.run(first, "DEL")
			if got := eth0.rules(); got != programmed {
				t.Errorf("without net1 the namespace has\n%s\nand had\n%s", got, programmed)
			}
			eth0.run(first, "CHECK")
			eth0.run(second, "DEL")
			eth0.nothing()
		})
	}
}

// What another version left alone stays so, and leaves nothing.
func leavesAlone(t *testing.T, first, second version) {
	p := newPod(t, testcase.Find(t, root, "osm/skip-no-sidecar"))
	p.run(first, "ADD")
	if got := p.logged(); got.Outcome != "skipped" {
		t.Errorf("the pod is %+v", got)
	}
	p.run(second, "CHECK")
	p.run(second, "DEL")
	p.nothing()
}
