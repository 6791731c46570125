package verify

import (
	"reflect"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

const (
	nothingOut = "where the pod's own connections are redirected to"
	nothingIn  = "where connections to the pod are redirected to"
)

func TestWhereNothingListens(t *testing.T) {
	for what, c := range map[string]struct {
		listeners []string
		want      []string
	}{
		"nowhere":           {nil, []string{"sidecar-listens nothing listens on port 15001 of the proxy's outbound listener over IPv4 and IPv6, " + nothingOut, "sidecar-listens nothing listens on port 15003 of the proxy's inbound listener over IPv4 and IPv6, " + nothingIn}},
		"IPv4 only":         {[]string{"tcp4/:15001", "tcp4/:15003"}, []string{"sidecar-listens port 15001 of the proxy's outbound listener over IPv6", "sidecar-listens port 15003 of the proxy's inbound listener over IPv6"}},
		"IPv6 only":         {[]string{"tcp6/[::]:15001", "tcp/:15003"}, []string{"sidecar-listens port 15001 of the proxy's outbound listener over IPv4"}},
		"inbound at lo":     {[]string{"tcp/:15001", "tcp4/127.0.0.1:15003", "tcp6/[::1]:15003"}, []string{"sidecar-listens port 15003 of the proxy's inbound listener over IPv4 and IPv6"}},
		"outbound at eth0":  {[]string{"tcp4/10.77.0.2:15001", "tcp6/[::1]:15001", "tcp/:15003"}, []string{"sidecar-listens port 15001 of the proxy's outbound listener over IPv4"}},
		"each family's own": {[]string{"tcp4/127.0.0.1:15001", "tcp6/[::1]:15001", "tcp4/10.77.0.2:15003", "tcp6/[fd77::2]:15003"}, nil},
		"UDP":               {[]string{"udp/:15001", "tcp/:15003"}, []string{"sidecar-listens port 15001 of the proxy's outbound listener over IPv4 and IPv6"}},
	} {
		for _, backend := range backends {
			t.Run(what+"/"+backend, func(t *testing.T) {
				t.Parallel()
				s := newScene(t, "osm", "envoy")
				s.conf["backend"] = backend
				s.add()
				s.run("envoy", "envoy", "1500:1500", c.listeners...)
				if c.want == nil {
					s.wantFine()
					return
				}
				s.want(c.want...)
			})
		}
	}
}

func TestANativeSidecar(t *testing.T) {
	t.Parallel()
	s := newScene(t, "osm", "envoy")
	s.set(s.pod, "spec/initContainers", []any{map[string]any{"name": "envoy", "restartPolicy": "Always"}})
	s.set(s.pod, "spec/containers", []any{map[string]any{"name": "app"}})
	status := map[string]any{"name": "envoy", "ready": true, "containerID": "containerd://" + containerID("envoy")}
	s.set(s.pod, "status", map[string]any{"initContainerStatuses": []any{status}})
	s.add()
	s.run("envoy", "envoy", "1500:1500", "tcp/:15001", "tcp/:15003")
	s.wantFine()
	s.set(status, "ready", false)
	s.want(`sidecar-ready container "envoy" is not ready`)
}

func TestASidecarThatIsRedirectedToItself(t *testing.T) {
	t.Parallel()
	s := newScene(t, "osm", "envoy")
	s.add()
	s.run("envoy", "envoy", "1337:1337", "tcp/:15001", "tcp/:15003")
	s.want("sidecar-user runs as UID 1337, not 1500: its own connections are redirected back to it")
}

func TestAnApplicationInTheSidecarsPlace(t *testing.T) {
	t.Parallel()
	s := newScene(t, "osm", "envoy")
	s.add()
	s.run("envoy", "envoy", "1500:1500", "tcp/:15003")
	s.run("app", "thief", "1000:1000", "tcp/:15001")
	s.want(`port-taken of container "app" listens on port 15001, which is the proxy's (outbound listener)`)
}

// What runs as the proxy's user may be the proxy, as long as nothing tells containers apart.
func TestWithoutAPodsStatusTheSidecarIsNotSuspected(t *testing.T) {
	t.Parallel()
	s := newScene(t, "osm-edge", "sidecar")
	s.add()
	s.set(s.pod, "status", map[string]any{})
	s.run("sidecar", "pipy", "1500:1500")
	s.run("helper", "healthcheck", "0:0", "tcp/:15904")
	p := s.verify()
	s.compare(p.Findings, []string{"sidecar-listens port 15001", "sidecar-listens port 15003"})
	s.compare(p.Unknown, []string{"sidecar-ready "})
}

func TestAListenerOutOfSightGoesByItsUser(t *testing.T) {
	t.Parallel()
	s := newOSM(t, "nftables")
	s.run("", "envoy", "1500:1500", "tcp/:15901")
	s.wantFine()
	s.run("", "app", "1000:1000", "tcp/:15902")
	s.want("port-taken a process of UID 1000 listens on port 15902")
}

// istio's rules tell the proxy by its user or its group, and redirect DNS queries, too.
func TestIstio(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, "istio", "istio-proxy")
			s.conf["backend"] = backend
			s.annotate("sidecar.istio.io/status", "{}")
			s.config = map[string]any{
				"kind": "ConfigMap", "apiVersion": "v1", "metadata": map[string]any{"namespace": "istio-system", "name": "istio"}, "data": map[string]any{"mesh": "{}"},
			}
			s.set(s.pod, "spec/containers", []any{
				map[string]any{"name": "app"},
				map[string]any{"name": "istio-proxy", "env": []any{map[string]any{"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}, map[string]any{"name": "ISTIO_DUAL_STACK", "value": "true"}}},
			})
			s.add()
			s.run("istio-proxy", "envoy", "1000:1337", "tcp/:15001", "tcp/:15006", "tcp/:15021", "tcp/:15090")
			s.run("app", "agent", "1000:1000", "tcp/:15004") // Envoy's debug port
			s.want(
				"port-taken of container \"app\" listens on port 15004, which is the proxy's (debug interface)",
				"sidecar-listens nothing listens on port 15053 of the proxy's DNS listener over IPv4 and IPv6, where DNS queries are redirected to",
				"sidecar-listens nothing listens on UDP port 15053 of the proxy's DNS listener over IPv4 and IPv6, where DNS queries are redirected to",
			)
			s.run("istio-proxy", "pilot-agent", "1337:1337", "udp4/127.0.0.1:15053", "udp6/[::1]:15053", "tcp4/127.0.0.1:15053", "tcp6/[::1]:15053")
			s.run("app", "worker", "1000:1337")
			s.set(s.config, "data/mesh", "proxyListenPort: 15011")
			s.want(
				"port-taken listens on port 15004",
				"proxy-user of container \"app\" runs as GID 1337, which is the proxy's",
				"drifted the outbound listener is 15011 today; the pod was programmed with 15001",
			)
		})
	}
}

// The DNS proxy of osm-edge answers on IPv4 only.
func TestTheDNSProxy(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, "osm-edge", "sidecar")
			s.conf["backend"] = backend
			s.set(s.config, "spec/sidecar/localDNSProxy", map[string]any{"enable": true})
			s.set(s.pod, "spec/dnsConfig", map[string]any{"nameservers": []string{"127.0.0.153"}})
			s.add()
			s.run("sidecar", "pipy", "1500:1500", "tcp/:15001", "tcp/:15003")
			s.want("sidecar-listens nothing listens on UDP port 5300 of the proxy's DNS listener over IPv4, where DNS queries")
			s.run("sidecar", "dns", "1500:1500", "udp4/127.0.0.153:5300")
			s.wantFine()
		})
	}
}

// With one family programmed, the other bypasses the proxy.
func TestAFamilyThatBypasses(t *testing.T) {
	t.Parallel()
	s := newScene(t, "osm", "envoy")
	s.add("10.77.0.2/24")
	s.inPod("ip", "addr", "add", "fd99::1/128", "dev", "lo")
	s.run("envoy", "envoy", "1500:1500", "tcp4/:15001", "tcp4/:15003")
	s.want("family-bypass the pod has the IPv6 address fd77::2, but only IPv4 is redirected: what it does over IPv6 bypasses the proxy")
	s.inPod("ip", "addr", "del", "fd77::2/64", "dev", "eth0")
	s.wantFine() // a link-local address is no way out
}

func TestTheFamiliesDrift(t *testing.T) {
	t.Parallel()
	s := newScene(t, "istio", "istio-proxy")
	s.annotate("sidecar.istio.io/status", "{}")
	dualStack := func(value string) {
		env := []any{map[string]any{"name": "ISTIO_DUAL_STACK", "value": value}}
		s.set(s.pod, "spec/containers", []any{map[string]any{"name": "istio-proxy", "env": env}})
	}
	dualStack("true")
	s.add()
	s.run("istio-proxy", "envoy", "1337:1337", "tcp/:15001", "tcp/:15006")
	s.wantFine()
	dualStack("false")
	s.want("drifted IPv6 is not redirected today; the pod was programmed with it")
	s.add()
	dualStack("true")
	s.want("drifted IPv6 is redirected today; the pod was programmed without it", "family-bypass the pod has the IPv6 address fd77::2")
}

func TestTheAddressesOfAllInterfacesDecide(t *testing.T) {
	t.Parallel()
	s := newScene(t, "osm", "envoy")
	s.add("10.77.0.2/24")
	s.addInterface("net1", "fd77::2/64")
	s.run("envoy", "envoy", "1500:1500", "tcp/:15001", "tcp/:15003")
	s.wantFine()
}

func TestTheGateIsTold(t *testing.T) {
	t.Parallel()
	s := newScene(t, "osm", "envoy")
	s.conf["redirectAfterProxyStart"] = true
	s.add()
	s.run("envoy", "envoy", "1500:1500", "tcp/:15001", "tcp/:15003")
	s.wantFine()
	if p := s.verify(); p.Gate != "outbound redirection waits for the proxy's first packet" || p.Backend != "nftables" || p.Mesh != "osm" || p.Rules == 0 {
		t.Errorf("%+v", p)
	}
	s.conf["redirectAfterProxyStart"] = false
	s.writeManifests()
	s.want("drifted the wait for the proxy's first packet is off today; the pod was programmed with on")
}

// Whatever a mesh redirects to, in either backend's words.
func TestEveryRedirectionIsSeen(t *testing.T) {
	for _, c := range testcase.Load(t, "../..") {
		d, err := c.Decide(t)
		if err != nil || d.Skip != "" {
			continue
		}
		want := map[target][]rules.Family{}
		for _, f := range d.Families {
			for _, r := range d.Policy.Ruleset().Rules {
				if to, ok := targetOf(r); ok && r.Concerns(f) && !slices.Contains(want[to], f) {
					want[to] = append(want[to], f)
				}
			}
		}
		for _, choice := range backends {
			program, err := backend.Prepare(t.Context(), choice, d.Policy.Ruleset(), d.Families)
			if err != nil {
				continue // iptables can't wait for the proxy
			}
			var record attachment.Record
			program.Keep(&record)
			if got := redirects(record); !reflect.DeepEqual(got, want) {
				t.Errorf("%s, %s: got %v, want %v", c.Name, choice, got, want)
			}
		}
	}
}

func targetOf(r rules.Rule) (to target, ok bool) {
	to.protocol = unix.IPPROTO_TCP
	if slices.Contains(r.Matches, rules.Match(rules.UDP)) {
		to.protocol = unix.IPPROTO_UDP
	}
	switch t := r.Target.(type) {
	case rules.Redirect:
		to.port = uint16(t)
	case rules.TProxy:
		to.port = t.Port
	case rules.DNAT:
		to.port = t.Port
	default:
	}
	return to, to.port != 0
}
