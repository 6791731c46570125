package admission_test

import (
	"fmt"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/admission"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/testcase"
)

func asJSON(t testing.TB, text string) []byte {
	t.Helper()
	if text == "" {
		return []byte{} // as a request without the object has it
	}
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

const restart = ": running pods keep their rules until they are restarted (kubectl rollout restart); `kubectl detour verify` shows which"

// meshConfig is Open Service Mesh's or its successors', with a spec.
func meshConfig(dialect, spec string) string {
	d, _ := mesh.Find(dialect)
	c := d.Config
	return fmt.Sprintf("{apiVersion: %s/%s, kind: MeshConfig, metadata: {namespace: %s, name: %s}, spec: {%s}}", c.Group, c.Versions[0], c.Namespace, c.Name, spec)
}

// configMap is istio's, with the text of its mesh.
func configMap(name, text string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {namespace: istio-system, name: %s}, data: {mesh: %q}}", name, text)
}

func TestWhatOfAConfigurationsChangeCounts(t *testing.T) {
	t.Parallel()
	traffic := func(spec string) string { return meshConfig("osm", "traffic: {"+spec+"}") }
	const osm, badPort = "MeshConfig osm-system/osm-mesh-config: ", `spec.traffic.outboundPortExclusionList: entry 1 "0": a port is 1 to 65535`
	for name, c := range map[string]struct {
		mesh, old, new  string
		denial, warning string
	}{
		"nothing":                      {"osm", traffic("outboundPortExclusionList: [6379]"), traffic("outboundPortExclusionList: [6379]"), "", ""},
		"another order":                {"osm", traffic("outboundPortExclusionList: [6379, 80]"), traffic("outboundPortExclusionList: [80, 6379]"), "", ""},
		"what is none of detour's":     {"osm", traffic("enableEgress: false"), traffic("enableEgress: true"), "", ""},
		"a list":                       {"osm", traffic("outboundPortExclusionList: [6379]"), traffic("outboundPortExclusionList: [6380]"), "", osm + "spec.traffic.outboundPortExclusionList" + restart},
		"an entry more":                {"osm", traffic("outboundPortExclusionList: [6379]"), traffic("outboundPortExclusionList: [6379, 6380]"), "", osm + "spec.traffic.outboundPortExclusionList" + restart},
		"a list that goes":             {"osm", traffic("outboundPortExclusionList: [6379]"), traffic(""), "", osm + "spec.traffic.outboundPortExclusionList" + restart},
		"two lists":                    {"osm", traffic("inboundPortExclusionList: [1]"), traffic("outboundIPRangeExclusionList: [10.0.0.0/8]"), "", osm + "spec.traffic.inboundPortExclusionList, spec.traffic.outboundIPRangeExclusionList" + restart},
		"a new object":                 {"osm", "", traffic("outboundPortExclusionList: [6379]"), "", osm + "spec.traffic.outboundPortExclusionList" + restart},
		"a new object of the defaults": {"osm", "", traffic("outboundPortExclusionList: []"), "", ""},
		"a deleted object":             {"osm", traffic("outboundPortExclusionList: [6379]"), "", "", osm + "spec.traffic.outboundPortExclusionList" + restart},
		"nobody's object":              {"osm", "", "", "", ""},
		"a port that is none":          {"osm", traffic("outboundPortExclusionList: [80]"), traffic("outboundPortExclusionList: [0]"), osm + badPort, ""},
		"in a new object":              {"osm", "", traffic("outboundPortExclusionList: [0]"), osm + badPort, ""},
		"that was there before":        {"osm", traffic("outboundPortExclusionList: [0]"), traffic("outboundPortExclusionList: [0], enableEgress: true"), "", osm + badPort},
		"that goes":                    {"osm", traffic("outboundPortExclusionList: [0]"), traffic("outboundPortExclusionList: [80]"), "", ""},
		"that goes with its object":    {"osm", traffic("outboundPortExclusionList: [0]"), "", "", ""},
		"another that is none":         {"osm", traffic("outboundPortExclusionList: [0]"), traffic("inboundPortExclusionList: [0]"), osm + `spec.traffic.inboundPortExclusionList: entry 1 "0": a port is 1 to 65535`, ""},
		"what the mesh does not know":  {"osm", traffic(""), meshConfig("osm", "sidecar: {localProxyMode: PodIP}"), "", osm + "spec.sidecar.localProxyMode is set, but mesh osm knows no such thing: ignored"},
		"that was set before":          {"osm", meshConfig("osm", "sidecar: {localProxyMode: PodIP}"), meshConfig("osm", "sidecar: {localProxyMode: PodIP, x: y}"), "", ""},
		"the proxy's mode":             {"fsm", meshConfig("fsm", ""), meshConfig("fsm", "sidecar: {localProxyMode: PodIP}"), "", "MeshConfig fsm-system/fsm-mesh-config: spec.sidecar.localProxyMode" + restart},
		"the proxy's DNS":              {"fsm", meshConfig("fsm", "sidecar: {localDNSProxy: {enable: true}}"), meshConfig("fsm", ""), "", "MeshConfig fsm-system/fsm-mesh-config: spec.sidecar.localDNSProxy" + restart},
		"interfaces":                   {"fsm", meshConfig("fsm", ""), meshConfig("fsm", "traffic: {networkInterfaceExclusionList: [net1]}"), "", "MeshConfig fsm-system/fsm-mesh-config: spec.traffic.networkInterfaceExclusionList" + restart},
		"another mesh's":               {"osm", "", meshConfig("fsm", "traffic: {outboundPortExclusionList: [0]}"), "", ""},
		"another object":               {"osm", "", strings.Replace(traffic("outboundPortExclusionList: [0]"), "osm-mesh-config", "preset-mesh-config", 1), "", ""},
		"another namespace's":          {"osm", "", strings.Replace(traffic("outboundPortExclusionList: [0]"), "osm-system", "default", 1), "", ""},
		"another version": {
			"osm", traffic(""), strings.Replace(traffic("outboundPortExclusionList: [0]"), "v1alpha2", "v9", 1), "",
			osm + `it is a "MeshConfig" of "config.openservicemesh.io/v9", which detour does not read: it reads a MeshConfig of config.openservicemesh.io/v1alpha2 or config.openservicemesh.io/v1alpha1`,
		},
		"another kind": {
			"osm", "", strings.Replace(traffic("outboundPortExclusionList: [0]"), "kind: MeshConfig", "kind: MeshRootCertificate", 1), "",
			osm + `it is a "MeshRootCertificate" of "config.openservicemesh.io/v1alpha2", which detour does not read: it reads a MeshConfig of config.openservicemesh.io/v1alpha2 or config.openservicemesh.io/v1alpha1`,
		},
		"istio's ports":           {"istio", configMap("istio", "accessLogFile: x"), configMap("istio", "proxyListenPort: 16001\nproxyInboundListenPort: 16006"), "", "ConfigMap istio-system/istio: data.mesh.proxyInboundListenPort, data.mesh.proxyListenPort" + restart},
		"what istio says besides": {"istio", configMap("istio", "accessLogFile: x"), configMap("istio", "accessLogFile: y"), "", ""},
		"a revision's port":       {"istio", configMap("istio-canary", ""), configMap("istio-canary", "proxyListenPort: 16001"), "", "ConfigMap istio-system/istio-canary: data.mesh.proxyListenPort" + restart},
		"a revision's bad port":   {"istio", configMap("istio-canary", ""), configMap("istio-canary", "proxyListenPort: 70000"), "ConfigMap istio-system/istio-canary: data.mesh: proxyListenPort: 70000: a port is 1 to 65535", ""},
		"one port for two":        {"istio", configMap("istio", ""), configMap("istio", "proxyListenPort: 15006"), "ConfigMap istio-system/istio: proxy port 15006 stands for two listeners", ""},
		"istio's injector":        {"istio", "", "{apiVersion: v1, kind: ConfigMap, metadata: {namespace: istio-system, name: istio-sidecar-injector}, data: {config: '[', values: '{'}}", "", ""},
		"istio's CA":              {"istio", "", "{apiVersion: v1, kind: ConfigMap, metadata: {namespace: istio-system, name: istio-ca-root-cert}, data: {root-cert.pem: x}}", "", ""},
		"no name of a revision's": {"istio", "", configMap("istio-", "proxyListenPort: 70000"), "", ""},
		"a name of no pod's":      {"istio", "", configMap("istio-default", "proxyListenPort: 70000"), "", ""},
		"any ConfigMap":           {"istio", "", configMap("grafana", "proxyListenPort: 70000"), "", ""},
	} {
		d, _ := mesh.Find(c.mesh)
		got := admission.CheckConfig(d, asJSON(t, c.old), asJSON(t, c.new))
		if got.Denial != c.denial || strings.Join(got.Warnings, "\n") != c.warning {
			t.Errorf("%s: %q and %q\nwant %q and %q", name, got.Denial, got.Warnings, c.denial, c.warning)
		}
	}
}

// A net conf that names the object takes it for all revisions.
func TestOnlyTheConfigurationThatTheNetConfNamesIsChecked(t *testing.T) {
	t.Parallel()
	istio, _ := mesh.Find("istio")
	d, err := istio.With(mesh.Override{MeshConfig: mesh.ConfigRef{Name: "ours"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, denied := range map[string]bool{"ours": true, "ours-canary": false, "istio": false, "istio-canary": false} {
		if got := admission.CheckConfig(d, nil, asJSON(t, configMap(name, "proxyListenPort: 70000"))); (got.Denial != "") != denied || got.Warnings != nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// What ADD says of a configuration in any case is what its author is told.
func TestEveryCasesConfigurationIsCheckedAsADDReadsIt(t *testing.T) {
	t.Parallel()
	denied, warned := 0, 0
	for _, c := range testcase.Load(t, "../..") {
		config := asJSON(t, c.Section("meshconfig.yaml"))
		if len(config) == 0 {
			continue
		}
		d, _ := mesh.Find(c.Mesh)
		got := admission.CheckConfig(d, nil, config)
		error := strings.TrimSpace(c.Section("want.error"))
		if own := strings.HasPrefix(error, d.Config.Kind+" ") || strings.Contains(error, "stands for two listeners"); own {
			denied++
			if want := strings.Replace(error, "pod shop/web: ", d.Config.String()+": ", 1); got.Denial != want {
				t.Errorf("%s: %q, ADD says %q", c.Name, got.Denial, want)
			}
			continue
		}
		if got.Denial != "" {
			t.Errorf("%s: denied: %s", c.Name, got.Denial)
		}
		for _, w := range lines(c.Section("want.warnings")) {
			if strings.HasPrefix(w, d.Config.Kind+" ") {
				warned++
				if !strings.Contains(strings.Join(got.Warnings, "\n"), w) {
					t.Errorf("%s: %q lacks %q", c.Name, got.Warnings, w)
				}
			}
		}
	}
	if denied < 10 || warned < 3 {
		t.Errorf("only %d are denied, %d warned of", denied, warned)
	}
}
