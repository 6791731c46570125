package cniplugin_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
)

// istioPod is the pod shop/web of istio with further annotations, each `name: "value"`.
func istioPod(annotations ...string) string {
	return `{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, uid: uid-1, annotations: {` +
		strings.Join(append(annotations, `sidecar.istio.io/status: "{}"`), ", ") + `}},
  spec: {containers: [{name: app}, {name: istio-proxy, args: [proxy, sidecar], securityContext: {runAsUser: 1337, runAsGroup: 1337}, env: [{name: ISTIO_META_DNS_CAPTURE, value: "true"}]}]}}`
}

const tproxy = `sidecar.istio.io/interceptionMode: TPROXY`

func newIstio(t testing.TB, annotations ...string) *attachment {
	t.Helper()
	a := newAttachment(t, istioPod(annotations...))
	a.conf["mesh"] = "istio"
	a.conf["prevResult"] = prevResult("fd00::5/64") // for which istio has both families programmed
	return a
}

// nothingLeft expects that not a trace of istio is in the namespace.
func (a *attachment) nothingLeft() {
	a.t.Helper()
	a.shell(`
		for save in iptables-save ip6tables-save; do ! $save | grep -e ^-A -e ISTIO; done
		for family in -4 -6; do
			! ip $family rule show | grep -e fwmark
			! ip $family route show table 133 2>/dev/null | grep .
		done
		! ip -6 addr show dev lo | grep ::6/128`)
	if got := a.records(); len(got) > 0 {
		a.t.Errorf("state is left: %q", got)
	}
}

func TestTProxyIsSetUpCheckedAndTakenOut(t *testing.T) {
	t.Parallel()
	a := newIstio(t, tproxy)
	a.must("ADD")
	a.must("CHECK")
	a.must("ADD")
	a.must("CHECK")
	for tamper, want := range map[string]string{
		"ip rule del fwmark 1337":                                                  "IPv4: ip rule fwmark 1337 lookup 133 is missing",
		"ip -6 route del local default dev lo table 133":                           "IPv6: local route on lo in table 133 is missing",
		"ip -6 addr del ::6/128 dev lo":                                            "IPv6: address ::6/128 on lo is missing",
		"iptables -t mangle -D OUTPUT -o lo -p tcp -m mark --mark 0x539 -j RETURN": "IPv4 mangle: -A OUTPUT -o lo -p tcp -m mark --mark 0x539 -j RETURN is missing from OUTPUT",
		"ip6tables -t raw -F ISTIO_OUTPUT_DNS":                                     "IPv6 raw: rule 1 of ISTIO_OUTPUT_DNS is missing",
	} {
		a.shell(tamper)
		a.fails("CHECK", 101, want)
		a.must("ADD")
		a.must("CHECK")
	}
	a.must("DEL")
	a.nothingLeft()
}

func TestDelWithoutStateFindsTheRoutesToo(t *testing.T) {
	t.Parallel()
	a := newIstio(t, tproxy)
	a.must("ADD")
	if err := os.RemoveAll(a.path("state")); err != nil {
		t.Fatal(err)
	}
	a.must("DEL")
	a.nothingLeft()
}

func TestARefusedTProxyLeavesNothing(t *testing.T) {
	t.Parallel()
	a := newIstio(t, tproxy)
	a.conf["backend"] = "iptables"
	a.env["PATH"] = failingRestore(t) + ":" + os.Getenv("PATH")
	a.fails("ADD", 999, "program IPv4 rules")
	a.nothingLeft()
}

// failingRestore is a folder whose iptables and iptables-restore always fail.
func failingRestore(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"iptables-nft", "iptables-legacy", "iptables-nft-restore", "iptables-legacy-restore"} {
		if err := os.WriteFile(dir+"/"+name, []byte("#!/bin/sh\necho no such target >&2\nexit 2\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// What istio's own plugin programs for these addresses, and on lo: scenarios say why.
func TestIstioProgramsTheFamiliesInWhichItsProxyListens(t *testing.T) {
	for name, c := range map[string]struct {
		addresses []string
		ipv6      bool
	}{
		"IPv4":             {[]string{"10.1.0.5/16"}, false},
		"IPv6":             {[]string{"fd00::5/64"}, true},
		"IPv4, then IPv6":  {[]string{"10.1.0.5/16", "fd00::5/64"}, false},
		"IPv6, then IPv4":  {[]string{"fd00::5/64", "10.1.0.5/16"}, false},
		"IPv4 of the link": {[]string{"169.254.172.2/22", "fd00::5/64"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newIstio(t)
			a.conf["prevResult"] = prevResult(c.addresses...)
			a.must("ADD")
			if len(a.rules(rules.IPv4)) == 0 {
				t.Error("IPv4 is not programmed")
			}
			if got := len(a.rules(rules.IPv6)) > 0; got != c.ipv6 {
				t.Errorf("IPv6 programmed: %v", got)
			}
			a.shell(map[bool]string{true: "", false: "! "}[c.ipv6] + "ip -6 addr show dev lo | grep 'inet6 ::6/128'")
			a.must("CHECK")
			a.must("DEL")
			a.nothingLeft()
			a.shell("! ip -6 addr show dev lo | grep ::6/128")
		})
	}
}

// A rule in a base chain bears no name of detour's: what an ADD programmed before the pod or the mesh changed is known
// from what it wrote down.
func TestAddAgainWithAnotherPolicyLeavesNothingOfTheFirst(t *testing.T) {
	t.Parallel()
	a, clean := newIstio(t, tproxy, `traffic.sidecar.istio.io/excludeInterfaces: "net1,net2"`), newIstio(t)
	a.must("ADD")
	a.file("manifests.yaml", istioPod())
	a.must("ADD")
	clean.must("ADD")
	for _, f := range rules.Families {
		if got, want := a.rules(f), clean.rules(f); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", f, got, want)
		}
	}
	a.shell("! iptables-save -t mangle | grep -e ^-A -e ISTIO")
	a.must("CHECK")
}

func TestTheProxyObjectOverridesTheRow(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, `{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, uid: uid-1, annotations: {example.com/outbound-port-exclusion-list: "8080"}},
		spec: {initContainers: [{name: osm-init, securityContext: {privileged: true}}], containers: [{name: app}, {name: pipy, securityContext: {runAsUser: 2000}}]}}`,
		`{apiVersion: mesh.example.com/v2, kind: Settings, metadata: {namespace: mesh, name: settings}, spec: {traffic: {outboundPortExclusionList: [6379]}}}`)
	a.conf["proxy"] = map[string]any{
		"container": "pipy", "initContainer": "pipy-init", "annotationPrefix": "example.com/", "uid": 2000,
		"ports":      map[string]int{"inbound": 16003, "outbound": 16001, "admin": 16000},
		"meshConfig": map[string]any{"group": "mesh.example.com", "versions": []string{"v2"}, "resource": "settings", "kind": "Settings", "namespace": "mesh", "name": "settings"},
	}
	w := nettest.StartWorld(t)
	a.ns, a.env["CNI_NETNS"] = w.Pod, w.Pod.Path()
	a.must("ADD")
	packets, err := nettest.ParsePackets(`
		out 1.1.1.1:80 -> proxy 16001
		out 1.1.1.1:80 uid=2000 -> outside
		out 1.1.1.1:80 uid=1500 -> proxy 16001
		out 1.1.1.1:6379 -> outside
		out 1.1.1.1:8080 -> outside
		in 80 -> proxy 16003`)
	if err != nil {
		t.Fatal(err)
	}
	nettest.CheckPackets(t, w, packets, 16001, 16003)
}

func TestAProxyObjectThatCantBeIsRefusedByField(t *testing.T) {
	for want, proxy := range map[string]map[string]any{
		`proxy.container: "Envoy!" can't be one`:                     {"container": "Envoy!"},
		`proxy.annotationPrefix: "example.com" can't be one`:         {"annotationPrefix": "example.com"},
		`proxy.uid: 0 can't be the proxy's`:                          {"uid": 0},
		`proxy.uid: got a string, want a number`:                     {"uid": "envoy"},
		`proxy.gid: mesh osm does not know its proxy by that`:        {"gid": 1},
		`proxy.ports.dns: mesh osm has no such listener`:             {"ports": map[string]int{"dns": 53}},
		`proxy port 15001 stands for two listeners`:                  {"ports": map[string]int{"inbound": 15001}},
		`proxy.ports.inbound: got a number 70000`:                    {"ports": map[string]int{"inbound": 70000}},
		`proxy.meshConfig.versions: "v1/../x" is not an API version`: {"meshConfig": map[string]any{"versions": []string{"v1/../x"}}},
		`proxy.user: there is no such field`:                         {"user": 1},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod())
			a.conf["proxy"] = proxy
			if _, ok := proxy["user"]; ok {
				want = "user: there is no such field"
			}
			a.fails("ADD", 7, want)
		})
	}
}

func TestInitContainersOfANamespaceGoDirectByNetConf(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, `{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, uid: uid-1},
		spec: {securityContext: {runAsUser: 1000}, initContainers: [{name: migrate, securityContext: {runAsUser: 4000}}, {name: wait}],
		containers: [{name: app}, {name: envoy, securityContext: {runAsUser: 1500}}]}}`, meshConfig)
	a.conf["directInitContainers"] = []string{"shop"}
	a.must("ADD")
	if !slices.Contains(a.rules(rules.IPv4), "-A PROXY_OUTPUT -m owner --uid-owner 4000 -j RETURN") {
		t.Errorf("UID 4000 does not go direct: %q", a.rules(rules.IPv4))
	}
	if w := a.logged()[0]["warnings"]; !strings.Contains(strings.Join(texts(w), "\n"), `init container "wait" runs as UID 1000, and a container of the application does, too`) {
		t.Errorf("warned of %v", w)
	}
}

func texts(list any) []string {
	var out []string
	all, _ := list.([]any)
	for _, v := range all {
		s, _ := v.(string)
		out = append(out, s)
	}
	return out
}
