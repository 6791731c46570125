package cniplugin_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// holdsScript prints all that detour may have programmed in a namespace, by whatever backend and iptables.
const holdsScript = `
for program in iptables-nft-save ip6tables-nft-save iptables-legacy-save ip6tables-legacy-save; do
	echo "by $program"
	$program 2>/dev/null
done | awk '/^by / {p = $2} /^\*/ {t = $1} /^-A/ || / - \[/ {print p, t, $0}' | sort -sk1,2 # the legacy tables are in the order in which they were made
nft list tables | grep -q ' detour$' && nft -s list table inet detour
for f in -4 -6; do
	ip $f rule show
	ip $f route show table 133 2>/dev/null
	ip -o $f addr show dev lo | sed 's/ valid_lft.*//'
done
true`

// holds is what the namespace has of all that detour may program.
func (a *attachment) holds() string {
	a.t.Helper()
	for _, program := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save", "nft", "ip"} {
		nettest.RequireProgram(a.t, program)
	}
	return a.output("sh", "-c", holdsScript)
}

// nothing is what an untouched namespace holds.
func (a *attachment) nothing() string {
	a.t.Helper()
	nothingOnce.Do(func() {
		nothing = (&attachment{t: a.t, ns: nettest.StartNamespace(a.t, "untouched")}).holds()
	})
	return nothing
}

var (
	nothingOnce sync.Once
	nothing     string
)

// decision is what an ADD may come to, with the net conf and objects that lead there.
type decision struct {
	name      string
	manifests []string
	conf      map[string]any
	addresses []string
}

var dual = []string{"10.77.0.2/24", "fd77::2/64"}

// decisions differ in all that an ADD programs: chains, tables, families, rules without a name of their own, routes,
// addresses, backend.
func decisions(backends ...string) []decision {
	podIP := strings.Replace(meshConfig, "spec: {traffic: {", "spec: {sidecar: {localProxyMode: PodIP}, traffic: {networkInterfaceExclusionList: [net7], ", 1)
	plain := []decision{
		{"osm", []string{meshedPod(), meshConfig}, nil, dual},
		{"osm, IPv4", []string{meshedPod(), meshConfig}, nil, dual[:1]},
		{"osm, IPv6", []string{meshedPod(), meshConfig}, nil, dual[1:]},
		{"osm-v1, PodIP", []string{meshedPod(), podIP}, map[string]any{"mesh": "osm-v1"}, dual},
		{"istio, no DNS", []string{strings.Replace(istioPod(), "ISTIO_META_DNS_CAPTURE", "OTHER", 1)}, map[string]any{"mesh": "istio"}, dual},
		{"istio, TPROXY", []string{istioPod(tproxy, `traffic.sidecar.istio.io/excludeInterfaces: "net1,net2"`)}, map[string]any{"mesh": "istio"}, dual},
	}
	var all []decision
	for _, backend := range backends {
		for _, d := range plain {
			conf := map[string]any{"backend": backend}
			maps.Copy(conf, d.conf)
			all = append(all, decision{d.name + " by " + backend, d.manifests, conf, d.addresses})
		}
	}
	return append(all,
		decision{"left alone", []string{meshConfig}, map[string]any{"excludeNamespaces": []string{"shop"}}, dual},
		decision{"osm, gated", []string{meshedPod(), meshConfig}, map[string]any{"redirectAfterProxyStart": true}, dual[:1]},
	)
}

// decide has the next ADD come to the decision.
func (a *attachment) decide(d decision) {
	a.t.Helper()
	a.file("manifests.yaml", strings.Join(d.manifests, "\n---\n"))
	for _, field := range []string{"backend", "excludeNamespaces", "redirectAfterProxyStart"} {
		delete(a.conf, field)
	}
	a.conf["mesh"] = "osm"
	maps.Copy(a.conf, d.conf)
	a.conf["prevResult"] = prevResult(d.addresses...)
}

// alone is what each decision's ADD leaves in a fresh namespace, and what DEL leaves then.
func alone(t *testing.T, path string, all []decision) []string {
	t.Helper()
	var want []string
	for _, d := range all {
		a := newAttachment(t, "")
		a.env["PATH"] = path
		a.decide(d)
		a.must("ADD")
		want = append(want, a.holds())
		a.must("DEL")
		a.empty()
	}
	return want
}

// forEachHost runs a test with each iptables as the host's default.
func forEachHost(t *testing.T, test func(t *testing.T, path string, all []decision)) {
	t.Run("nft", func(t *testing.T) { t.Parallel(); test(t, os.Getenv("PATH"), decisions("iptables", "nftables")) })
	t.Run("legacy", func(t *testing.T) { t.Parallel(); test(t, legacyPath(t), decisions("iptables")) })
}

// legacyPath is a folder in which iptables is the legacy one.
func legacyPath(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			nettest.RequireProgram(t, family+"-legacy"+suffix)
			path, err := exec.LookPath(family + "-legacy" + suffix)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(path, filepath.Join(dir, family+suffix)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// Whatever an earlier ADD decided, the namespace is as the last ADD alone leaves it, and empty after DEL.
func TestASecondAddLeavesWhatItAloneWouldLeave(t *testing.T) {
	forEachHost(t, func(t *testing.T, path string, all []decision) {
		want := alone(t, path, all)
		for _, first := range all {
			t.Run(first.name, func(t *testing.T) {
				t.Parallel()
				a := newAttachment(t, "")
				a.env["PATH"] = path
				for i, second := range all {
					a.decide(first)
					a.must("ADD")
					a.decide(second)
					a.must("ADD")
					a.same("then "+second.name, want[i])
					a.must("CHECK")
					a.must("DEL")
					a.same("then "+second.name+", then DEL", a.nothing())
				}
				a.empty()
			})
		}
	})
}

// What an earlier ADD wrote down may be gone or make no sense. Then the second looks for what any mesh may have left.
func TestASecondAddWithoutTheFirstOnesRecord(t *testing.T) {
	var all []decision
	for _, d := range decisions("iptables", "nftables") {
		if slices.Contains([]string{"osm by iptables", "osm, IPv6 by nftables", "istio, TPROXY by nftables", "left alone", "osm, gated"}, d.name) {
			all = append(all, d)
		}
	}
	// Without interfaces: nothing tells the rules for those from another's.
	all = append(all, decision{"istio, TPROXY by iptables", []string{istioPod(tproxy)}, map[string]any{"mesh": "istio", "backend": "iptables"}, dual})
	want := alone(t, os.Getenv("PATH"), all)
	for name, spoil := range map[string]func(a *attachment){
		"lost":       func(a *attachment) { os.RemoveAll(a.path("state")) },
		"unreadable": func(a *attachment) { a.file(a.recordName(), "{") },
	} {
		for i, second := range all {
			if second.name == "left alone" && name == "lost" { // it is not looked at
				continue
			}
			t.Run(name+", "+second.name, func(t *testing.T) {
				t.Parallel()
				a := newAttachment(t, "")
				for _, first := range all {
					a.decide(first)
					a.must("ADD")
					spoil(a)
					a.decide(second)
					a.must("ADD")
					a.same("after "+first.name, want[i])
					a.must("CHECK")
					a.must("DEL")
					a.same("after "+first.name+", then DEL", a.nothing())
				}
				a.empty()
			})
		}
	}
}

// A pod that is left alone may have rules that others made, under the mesh's own names: without a record nobody knows better.
func TestAPodThatIsLeftAloneKeepsItsRules(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, strings.Replace(meshedPod(), "spec: {", "spec: {initContainers: [{name: osm-init, securityContext: {privileged: true}}], ", 1), meshConfig)
	a.shell("iptables -t nat -N PROXY_OUTPUT; iptables -t nat -A OUTPUT -p tcp -j PROXY_OUTPUT")
	want := a.holds()
	for range 2 {
		a.must("ADD")
		a.must("CHECK")
	}
	a.must("DEL")
	a.same("DEL", want)
}
