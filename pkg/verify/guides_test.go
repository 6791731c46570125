package verify

import "testing"

// backends have to make no difference.
var backends = []string{"iptables", "nftables"}

// Each step of Open Service Mesh's published guide to troubleshooting redirection, and what osm-edge's guide adds, has one answer.
func TestEveryStepOfTheGuides(t *testing.T) {
	const annotation = "openservicemesh.io/outbound-port-exclusion-list"
	for step, c := range map[string]struct {
		happens func(*scene)
		want    []string
	}{
		"the sidecar is injected": {func(s *scene) {
			s.set(s.pod, "spec/containers", []any{map[string]any{"name": "app"}})
		}, []string{`not-wanted it has no container "envoy"`, `sidecar-ready the pod has no container "envoy"`}},
		"the sidecar is ready": {func(s *scene) {
			s.set(s.pod, "status/containerStatuses", []any{map[string]any{"name": "envoy", "ready": false, "restartCount": 5, "state": map[string]any{"waiting": map[string]any{"reason": "CrashLoopBackOff"}}}})
		}, []string{`sidecar-ready container "envoy" is not ready: CrashLoopBackOff, restarted 5 times`}},
		"the rules were programmed": {func(s *scene) {
			s.flush("PROXY_IN_REDIRECT")
		}, []string{"rule-missing rule 1 of PROXY_IN_REDIRECT is missing"}},
		"the outbound ranges in the MeshConfig are programmed": {func(s *scene) {
			s.set(s.config, "spec/traffic/outboundIPRangeExclusionList", []string{"1.1.1.1/32", "2.2.2.2/24"})
		}, []string{"drifted MeshConfig spec.traffic.outboundIPRangeExclusionList has 1.1.1.1/32, 2.2.2.0/24 today; the pod was programmed without them"}},
		"the outbound ports in the MeshConfig are programmed": {func(s *scene) {
			s.set(s.config, "spec/traffic/outboundPortExclusionList", []int{6379, 7070})
		}, []string{"drifted MeshConfig spec.traffic.outboundPortExclusionList has 7070 today; the pod was programmed without it"}},
		"a port was taken out of the MeshConfig": {func(s *scene) {
			s.set(s.config, "spec/traffic/outboundPortExclusionList", []int{})
		}, []string{"drifted MeshConfig spec.traffic.outboundPortExclusionList no longer has 6379; the pod was programmed with it"}},
		"the annotation is on the pod": {func(s *scene) {
			s.annotate(annotation, "8080,9090")
		}, []string{"drifted annotation " + annotation + " has 9090 today; the pod was programmed without it"}},
		"the annotation was taken away": {func(s *scene) {
			s.annotate(annotation, "9090")
		}, []string{
			"drifted annotation " + annotation + " has 9090 today; the pod was programmed without it",
			"drifted annotation " + annotation + " no longer has 8080; the pod was programmed with it",
		}},
		"a port moved from the annotation to the MeshConfig": {func(s *scene) {
			s.annotate(annotation, "9090")
			s.set(s.config, "spec/traffic/outboundPortExclusionList", []int{6379, 8080})
		}, []string{"drifted annotation " + annotation + " has 9090 today; the pod was programmed without it"}},
		"the inbound ports are programmed": {func(s *scene) {
			s.set(s.config, "spec/traffic/inboundPortExclusionList", []int{9000})
			s.annotate("openservicemesh.io/inbound-port-exclusion-list", "9001")
		}, []string{
			"drifted MeshConfig spec.traffic.inboundPortExclusionList has 9000 today",
			"drifted annotation openservicemesh.io/inbound-port-exclusion-list has 9001 today",
		}},
		"the pod's ranges are programmed": {func(s *scene) {
			s.annotate("openservicemesh.io/outbound-ip-range-exclusion-list", "10.244.0.0/16,10.96.0.0/16")
		}, []string{"drifted annotation openservicemesh.io/outbound-ip-range-exclusion-list has 10.244.0.0/16, 10.96.0.0/16 today"}},
		"no application uses a reserved port": {func(s *scene) {
			s.run("app", "metrics", "1000:1000", "tcp4/:15901", "tcp6/[::]:15901")
		}, []string{`port-taken of container "app" listens on port 15901, which is the proxy's (liveness probes)`}},
		"no application has the proxy's user": {func(s *scene) {
			s.run("app", "worker", "1500:1000")
		}, []string{`proxy-user of container "app" runs as UID 1500, which is the proxy's`}},
		"nor says so": {func(s *scene) {
			s.set(s.pod, "spec/containers", []any{map[string]any{"name": "app", "securityContext": map[string]any{"runAsUser": 1500}}, map[string]any{"name": "envoy"}})
		}, []string{`refused container "app" runs as UID 1500, which is the proxy's`}},
	} {
		for _, backend := range backends {
			t.Run(step+"/"+backend, func(t *testing.T) {
				t.Parallel()
				s := newScene(t, "osm", "envoy")
				s.conf["backend"] = backend
				s.set(s.config, "spec/traffic/outboundPortExclusionList", []int{6379})
				s.annotate(annotation, "8080")
				s.add()
				s.run("envoy", "envoy", "1500:1500", "tcp/:15001", "tcp/:15003")
				s.wantFine()
				c.happens(s)
				s.want(c.want...)
			})
		}
	}
}

func (s *scene) flush(chain string) {
	s.t.Helper()
	if s.conf["backend"] == "nftables" {
		s.inPod("nft", "flush chain inet detour "+chain)
		return
	}
	s.inPod("iptables-nft", "-t", "nat", "-F", chain)
}

// osm-edge adds inclusion lists, interfaces, a DNS proxy and a port for TCP probes.
func TestWhatOSMEdgeAdds(t *testing.T) {
	for what, c := range map[string]struct {
		happens func(*scene)
		want    string
	}{
		"included ranges": {func(s *scene) {
			s.set(s.config, "spec/traffic/outboundIPRangeInclusionList", []string{"10.0.0.0/8"})
		}, "drifted MeshConfig spec.traffic.outboundIPRangeInclusionList has 10.0.0.0/8 today"},
		"the pod's included ranges": {func(s *scene) {
			s.annotate("openservicemesh.io/outbound-ip-range-inclusion-list", "10.0.0.0/8")
		}, "drifted annotation openservicemesh.io/outbound-ip-range-inclusion-list has 10.0.0.0/8 today"},
		"localProxyMode": {func(s *scene) {
			s.set(s.config, "spec/sidecar/localProxyMode", "PodIP")
		}, "drifted the address by which the proxy reaches the application is [10.77.0.2 fd77::2] today; the pod was programmed with localhost"},
		"port 15904": {func(s *scene) {
			s.run("app", "probed", "0:0", "tcp/:15904")
		}, "port-taken probed (PID "},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, "osm-edge", "sidecar")
			s.add()
			s.run("sidecar", "pipy", "1500:1500", "tcp/:15001", "tcp/:15003")
			s.wantFine()
			c.happens(s)
			s.want(c.want)
		})
	}
}
