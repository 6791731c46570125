package mesh

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

func osm(t testing.TB) Dialect {
	t.Helper()
	d, ok := Find("osm")
	if !ok {
		t.Fatal("there is no mesh osm")
	}
	return d
}

func meshed(annotations map[string]string) pod.Pod {
	return pod.Pod{Namespace: "shop", Name: "web", Annotations: annotations, Containers: []pod.Container{{Name: "app"}, {Name: "envoy"}}}
}

func TestEveryDialectIsWhole(t *testing.T) {
	for _, name := range Names() {
		d, _ := Find(name)
		decision, err := d.Decide(Input{Pod: pod.Pod{Containers: []pod.Container{{Name: d.Sidecar}}, Annotations: map[string]string{istioStatus: "{}"}}})
		if err != nil || decision.Skip != "" {
			t.Errorf("%s: a pod with only the sidecar: %q, %v", name, decision.Skip, err)
		}
		if len(d.Config.Versions) == 0 != d.Config.IsZero() || d.Proxy.UID == 0 || len(d.Prefixes) == 0 {
			t.Errorf("%s: the row lacks something: %+v", name, d)
		}
		for _, prefix := range d.Prefixes {
			if !strings.HasSuffix(prefix, "/") || !d.Reads(prefix+"x") || d.Reads("x."+prefix+"x") {
				t.Errorf("%s: prefix %q", name, prefix)
			}
		}
		if !d.Reads(GateAnnotation) || d.Reads("example.com/x") || d.Revision != "" && !d.Reads(d.Revision) {
			t.Errorf("%s: it reads what it should not, or does not read what it should", name)
		}
	}
	if _, ok := Find("linkerd"); ok {
		t.Error("found a mesh that there is no row for")
	}
}

// Every mesh knows detour's own options, and what may have to be removed from a namespace without a record.
func TestEveryMeshKnowsWhatIsCommonToAll(t *testing.T) {
	user, other := int64(4711), int64(4712)
	for _, name := range Names() {
		d, _ := Find(name)
		p := meshed(map[string]string{istioStatus: "{}"})
		p.Containers[1].Name = d.Sidecar
		p.Containers[0].RunAsUser = &other
		p.InitContainers = []pod.Container{{Name: "migrate", RunAsUser: &user}}
		addresses := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
		plain, err := d.Decide(Input{Pod: p, Addresses: addresses})
		if err != nil || len(plain.Families) == 0 {
			t.Fatalf("%s: families %v, %v", name, plain.Families, err)
		}
		with, err := d.Decide(Input{Pod: p, Addresses: addresses, DirectInit: true, Gated: true})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		rs := with.Policy.Ruleset()
		direct := func(r rules.Rule) bool {
			return r.Target == rules.Return{} && slices.Contains(r.Matches, rules.Match(rules.OwnerUID{ID: uint32(user)}))
		}
		if !rs.Gated() || plain.Policy.Ruleset().Gated() {
			t.Errorf("%s: the gate is there whatever is asked for, or never", name)
		}
		if !slices.ContainsFunc(rs.Rules, direct) || slices.ContainsFunc(plain.Policy.Ruleset().Rules, direct) {
			t.Errorf("%s: the init container goes direct whatever is asked for, or never", name)
		}
		broadest := d.Broadest()
		if err := broadest.Validate(); err != nil {
			t.Errorf("%s: the broadest policy: %v", name, err)
		}
		for _, c := range plain.Policy.Ruleset().Chains {
			if !slices.Contains(broadest.Ruleset().Chains, c) {
				t.Errorf("%s: the broadest policy lacks %v", name, c)
			}
		}
	}
}

// An application can't listen where its proxy does. The DNS listener is on loopback addresses alone.
func TestTheProxysPortsAreReserved(t *testing.T) {
	for _, name := range Names() {
		d, _ := Find(name)
		p := meshed(map[string]string{istioStatus: "{}"})
		p.Containers[1].Name = d.Sidecar
		want := slices.DeleteFunc(append([]uint16{d.Proxy.Inbound, d.Proxy.Outbound, d.Proxy.Admin, d.Proxy.Tunnel}, d.ProxyPorts...), func(port uint16) bool { return port == 0 })
		p.Containers[0].Ports = append([]uint16{0, 8080, d.Proxy.DNS}, want...)
		decision, err := d.Decide(Input{Pod: p})
		if err != nil || len(decision.Warnings) != len(want) {
			t.Errorf("%s: warnings %q, %v, want one for each of %v", name, decision.Warnings, err, want)
		}
	}
}

func TestIstiosLists(t *testing.T) {
	d, _ := Find("istio")
	p := meshed(map[string]string{
		istioStatus: "{}", istioTraffic + "includeInboundPorts": " * ", istioTraffic + "includeOutboundIPRanges": " ",
		istioTraffic + "excludeOutboundPorts": "80, 81,80", istioTraffic + "excludeInterfaces": "net1,net1",
	})
	p.Containers[1].Name = d.Sidecar
	decision, err := d.Decide(Input{Pod: p})
	if err != nil {
		t.Fatal(err)
	}
	got := decision.Policy.(redirect.Istio)
	if !got.Inbound.All || got.Outbound.All || got.Outbound.IncludeRanges != nil || len(got.Outbound.ExcludePorts) != 2 || len(got.ExcludeInterfaces) != 1 {
		t.Errorf("got %+v", got)
	}
	p.Annotations[istioTraffic+"includeOutboundPorts"], p.Annotations[istioReroute] = "first", "and last/"
	if _, err := d.Decide(Input{Pod: p}); err == nil || !strings.Contains(err.Error(), `"first"`) {
		t.Errorf("got %v, not the first of two errors", err)
	}
	if _, err := d.With(Override{AnnotationPrefix: "example.com/"}); err == nil {
		t.Error("istio's annotations have one prefix")
	}
}

// Whatever an annotation says, it ends as a valid policy or as an error that names the annotation.
func FuzzAnnotations(f *testing.F) {
	for _, seed := range [][4]string{
		{"6379, 7070", "8080", "10.0.0.0/8,fd00::/8", "enabled"},
		{"", ",", "10.0.0.1", "maybe"},
		{"70000", "0", "10.0.0.0/33", "NO"},
		{"80 -j ACCEPT", "80\nCOMMIT", "0.0.0.0/0", ""},
		{"+80", "0x50", "::ffff:10.0.0.0/104", "fe80::1%eth0/64"},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	d, prefix := osm(f), osm(f).Prefixes[0]
	f.Fuzz(func(t *testing.T, out, in, ranges, injection string) {
		decision, err := d.Decide(Input{Pod: meshed(map[string]string{
			prefix + outboundPorts: out, prefix + inboundPorts: in, prefix + outboundRanges: ranges, prefix + sidecarInjection: injection,
		})})
		switch {
		case err != nil && !strings.HasPrefix(err.Error(), "pod shop/web: "+prefix):
			t.Errorf("error %q does not name pod and annotation", err)
		case err == nil && decision.Skip == "" && decision.Policy.Validate() != nil:
			t.Errorf("invalid policy: %v", decision.Policy.Validate())
		}
	})
}

func FuzzMeshConfig(f *testing.F) {
	for _, seed := range []string{
		`{"kind":"MeshConfig","spec":{"traffic":{"outboundIPRangeExclusionList":["1.1.1.1/32","2.2.2.2/24"],"outboundPortExclusionList":[6379,7070]}}}`,
		`{"kind":"MeshConfig","spec":{"traffic":{"inboundPortExclusionList":[0.5,1e3,70000]}}}`,
		`{"kind":"MeshConfig","spec":{"traffic":{"outboundIPRangeInclusionList":["x"],"networkInterfaceExclusionList":["net1"]},"sidecar":{"localProxyMode":"PodIP"}}}`,
		`{"kind":"MeshConfig","spec":[]}`, `{"kind":"ConfigMap"}`, `{}`, `null`, ``,
	} {
		f.Add([]byte(seed))
	}
	d := osm(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		decision, err := d.Decide(Input{Pod: meshed(nil), Config: data})
		switch {
		case err != nil && !strings.HasPrefix(err.Error(), "MeshConfig osm-system/osm-mesh-config: "):
			t.Errorf("error %q does not name the object", err)
		case err == nil && !json.Valid(data):
			t.Error("accepted what is no JSON")
		case err == nil && decision.Policy.Validate() != nil:
			t.Errorf("invalid policy: %v", decision.Policy.Validate())
		}
	})
}
func TestNames(t *testing.T) {
	good := []string{"a", "web-0", "a.b-c.d", "0"}
	bad := []string{"", "-a", "a-", ".a", "a.", "A", "a/b", "a b", "ä", "a%2e", string(make([]byte, 254))}
	for _, s := range append(slices.Clone(good), bad...) {
		if got, want := IsName(s), slices.Contains(good, s); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

// Whatever istio's annotations and variables say, it ends as a valid policy or as an error that names what is wrong.
func FuzzIstio(f *testing.F) {
	for _, seed := range [][4]string{
		{"*", "10.0.0.0/8,fd00::/8", "TPROXY", "true"},
		{"", "*", "REDIRECT", "false"},
		{"80,*", "10.0.0.1", "NONE", "1"},
		{"70000", "::ffff:0:0/96", "tproxy", "maybe"},
		{" 80 , 443 ", "0.0.0.0/0", "", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	d, _ := Find("istio")
	f.Fuzz(func(t *testing.T, ports, ranges, mode, env string) {
		p := pod.Pod{Namespace: "shop", Name: "web", Containers: []pod.Container{{Name: "istio-proxy", Env: map[string]string{"ISTIO_META_DNS_CAPTURE": env}}}}
		p.Annotations = map[string]string{istioStatus: "{}", istioMode: mode, istioReroute: ports}
		for _, name := range []string{"includeInboundPorts", "excludeInboundPorts", "includeOutboundPorts", "excludeOutboundPorts"} {
			p.Annotations[istioTraffic+name] = ports
		}
		for _, name := range []string{"includeOutboundIPRanges", "excludeOutboundIPRanges"} {
			p.Annotations[istioTraffic+name] = ranges
		}
		decision, err := d.Decide(Input{Pod: p})
		switch {
		case err != nil && !strings.HasPrefix(err.Error(), "pod shop/web: "):
			t.Errorf("error %q does not name the pod", err)
		case err == nil && decision.Skip == "" && decision.Policy.Validate() != nil:
			t.Errorf("invalid policy: %v", decision.Policy.Validate())
		}
	})
}

func FuzzIstioConfigMap(f *testing.F) {
	for _, seed := range []string{"proxyListenPort: 15001", "proxyInboundListenPort: -1", "proxyListenPort: 15006", "[", "a: &a [*a]", ""} {
		f.Add(seed)
	}
	d, _ := Find("istio")
	p := pod.Pod{Namespace: "shop", Name: "web", Annotations: map[string]string{istioStatus: "{}"}, Containers: []pod.Container{{Name: "istio-proxy"}}}
	f.Fuzz(func(t *testing.T, text string) {
		object, err := json.Marshal(map[string]any{"kind": "ConfigMap", "data": map[string]string{"mesh": text}})
		if err != nil {
			t.Fatal(err)
		}
		decision, err := d.Decide(Input{Pod: p, Config: object})
		if err == nil && decision.Policy.Validate() != nil {
			t.Errorf("invalid policy: %v", decision.Policy.Validate())
		}
	})
}

// The published lists of each mesh: what an application must not listen on.
func TestReservedPorts(t *testing.T) {
	osm := []uint16{15000, 15001, 15003, 15010, 15901, 15902, 15903}
	later := append(slices.Clone(osm), 15904)
	for name, want := range map[string][]uint16{
		"osm": osm, "osm-v1": later, "osm-edge": later, "fsm": later,
		"istio": {15000, 15001, 15004, 15006, 15008, 15020, 15021, 15090},
	} {
		d, _ := Find(name)
		reserved := d.Reserved(d.Proxy)
		if got := slices.Sorted(maps.Keys(reserved)); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
		for _, port := range d.ProxyPorts {
			if reserved[port] == "" {
				t.Errorf("%s: nothing says what port %d is for", name, port)
			}
		}
	}
}
