package conformance

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// istioCases are pods of namespace shop, and what is set in istio's mesh configuration.
var istioCases = []struct{ name, annotations, spec, mesh string }{
	{"plain", "", "", ""},
	{"native sidecar", "sidecar.istio.io/nativeSidecar: 'true'", "", ""},
	{"not injected", "sidecar.istio.io/inject: 'false'", "", ""},
	{"gateway", "inject.istio.io/templates: gateway", "containers: [{name: istio-proxy, image: auto}]", ""},
	{"excluded outbound ports", "traffic.sidecar.istio.io/excludeOutboundPorts: '6379,5432'", "", ""},
	{"excluded inbound ports", "traffic.sidecar.istio.io/excludeInboundPorts: '9100, 9101'", "", ""},
	{"included inbound ports", "traffic.sidecar.istio.io/includeInboundPorts: '8080,8443'", "", ""},
	{"no inbound port", "traffic.sidecar.istio.io/includeInboundPorts: ''", "", ""},
	{"included outbound ports", "traffic.sidecar.istio.io/includeOutboundPorts: '9000', traffic.sidecar.istio.io/includeOutboundIPRanges: ''", "", ""},
	{"included outbound ranges", "traffic.sidecar.istio.io/includeOutboundIPRanges: '10.1.0.0/16,fd01::/64'", "", ""},
	{"included loopback", "traffic.sidecar.istio.io/includeOutboundIPRanges: '127.0.0.0/8,::1/128'", "", ""},
	{"excluded outbound ranges", "traffic.sidecar.istio.io/excludeOutboundIPRanges: '10.1.0.0/16,fd01::/64,192.0.2.0/24'", "", ""},
	{"excluded interfaces", "traffic.sidecar.istio.io/excludeInterfaces: 'net1,net2'", "", ""},
	{"virtual interfaces", "istio.io/reroute-virtual-interfaces: 'k6t-vm,vnet0'", "", ""},
	{"kubevirt interfaces", "traffic.sidecar.istio.io/kubevirtInterfaces: 'k6t-vm', traffic.sidecar.istio.io/includeOutboundIPRanges: '10.1.0.0/16,10.2.0.0/16'", "", ""},
	{"TPROXY", "sidecar.istio.io/interceptionMode: TPROXY", "", ""},
	{"TPROXY of the mesh", "", "", "defaultConfig: {interceptionMode: TPROXY}"},
	{"TPROXY of proxy.istio.io/config", "proxy.istio.io/config: 'interceptionMode: TPROXY'", "", ""},
	{"TPROXY, native sidecar", "sidecar.istio.io/interceptionMode: TPROXY, sidecar.istio.io/nativeSidecar: 'true'", "", ""},
	{"TPROXY, included ports", "sidecar.istio.io/interceptionMode: TPROXY, traffic.sidecar.istio.io/includeInboundPorts: '8080'", "", ""},
	{"TPROXY, excluded interface", "sidecar.istio.io/interceptionMode: TPROXY, traffic.sidecar.istio.io/excludeInterfaces: net1", "", ""},
	{"DNS capture", "proxy.istio.io/config: 'proxyMetadata: {ISTIO_META_DNS_CAPTURE: \"true\"}'", "", ""},
	{"DNS capture of the mesh", "", "", "defaultConfig: {proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}}"},
	{"DNS capture, TPROXY", "sidecar.istio.io/interceptionMode: TPROXY", "", "defaultConfig: {proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}}"},
	{"dual stack", "", "", "defaultConfig: {proxyMetadata: {ISTIO_DUAL_STACK: 'true'}}"},
	{"dual stack, DNS capture, TPROXY", "sidecar.istio.io/interceptionMode: TPROXY", "", "defaultConfig: {proxyMetadata: {ISTIO_DUAL_STACK: 'true', ISTIO_META_DNS_CAPTURE: 'true'}}"},
	{"invalid packets dropped", "proxy.istio.io/config: 'proxyMetadata: {INVALID_DROP: \"true\"}'", "", ""},
	{"probes", "", "containers: [{name: app, image: app, ports: [{containerPort: 8080}], livenessProbe: {tcpSocket: {port: 8080}}, readinessProbe: {httpGet: {port: 8080}}, startupProbe: {grpc: {port: 8080}}}]", ""},
	{"init containers", "", "initContainers: [{name: migrate, image: app, securityContext: {runAsUser: 4000}}], containers: [{name: app, image: app}]", ""},
	{"proxy's user", "", "containers: [{name: app, image: app}, {name: istio-proxy, image: auto, securityContext: {runAsUser: 2000, runAsGroup: 2001}}]", ""},
	{"proxy starts first", "", "", "defaultConfig: {holdApplicationUntilProxyStarts: true}"},
	{"revision", "istio.io/rev: canary", "", ""},
	{"lists of the mesh", "", "", ""},
}

// istioValues are set in istiod's chart.
var istioValues = map[string]string{
	"revision":          "revision: canary",
	"lists of the mesh": "global: {proxy: {includeIPRanges: '10.0.0.0/8,fd00::/8', excludeIPRanges: '10.9.0.0/16', excludeOutboundPorts: '9200', excludeInboundPorts: '9300'}}",
}

// istioAddresses are the addresses of pods, in the order of the runtime's result. istio asks the kernel instead, which lists
// IPv4 first.
var istioAddresses = map[string][]string{
	"IPv4":             {"10.77.0.2/24"},
	"IPv6":             {"fd77::2/64"},
	"both, IPv4 ahead": {"10.77.0.2/24", "fd77::2/64"},
	"both, IPv6 ahead": {"fd77::2/64", "10.77.0.2/24"},
}

func TestIstio(t *testing.T) {
	t.Parallel()
	for _, c := range istioCases {
		for which, addresses := range istioAddresses {
			t.Run(c.name+"/"+which, func(t *testing.T) {
				t.Parallel()
				spec := c.spec
				if spec == "" {
					spec = "containers: [{name: app, image: app}]"
				}
				values := merge(parse(t, "{revision: default, pilot: {cni: {enabled: true}}}"), parse(t, istioValues[c.name]))
				pod := parse(t, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, uid: uid-1, annotations: {%s}}, spec: {%s}}", c.annotations, spec))
				injected, meshConfig := injectIstio(t, values, parse(t, c.mesh), pod)

				theirs, ours := startPod(t, addresses), startPod(t, addresses)
				addIstio(t, addresses, theirs, injected)
				logged := addDetour(t, "istio", addresses, ours, injected, meshConfig)
				if warnings := unexpected(logged, len(addresses) > 1 && !strings.Contains(c.mesh, "DUAL_STACK")); warnings != nil {
					t.Errorf("warned: %v", warnings)
				}
				compare(t, snapshot(t, ours), snapshot(t, theirs))
				if err := validate(t, injected, addresses, ours); err != nil {
					t.Errorf("istio-validation fails: %v; after istio's own plugin: %v", err, validate(t, injected, addresses, theirs))
				}
			})
		}
	}
}

// istiod that knows of no CNI plugin says in the arguments of istio-init alone what holds for the whole mesh.
func TestIstioWithoutItsInitContainer(t *testing.T) {
	t.Parallel()
	pod := parse(t, "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, uid: uid-1}, spec: {containers: [{name: app, image: app}]}}")
	injected, meshConfig := injectIstio(t, parse(t, "revision: default"), parse(t, "defaultConfig: {interceptionMode: TPROXY}"), pod)
	if takeOut(injected, "istio-init") == nil {
		t.Fatal("istio-init was not injected")
	}
	addresses := istioAddresses["IPv4"]
	logged := addDetour(t, "istio", addresses, startPod(t, addresses), injected, meshConfig)
	if !strings.Contains(fmt.Sprint(logged["warnings"]), "pilot.cni.enabled") {
		t.Errorf("it does not warn of what is lost: %v", logged)
	}
}

// unexpected are the warnings of an ADD but the one that a pod of both families has whose proxy listens on one.
func unexpected(logged object, oneFamily bool) []any {
	warnings, _ := logged["warnings"].([]any)
	if oneFamily && len(warnings) == 1 && strings.Contains(warnings[0].(string), "ISTIO_DUAL_STACK") {
		return nil
	}
	return warnings
}

// istiod is what istioctl would install for istiod: its ConfigMaps.
var istiod struct {
	sync.Mutex
	configMaps map[string]object
}

// istiodConfig is the data of one of istiod's ConfigMaps.
func istiodConfig(t *testing.T, name string) object {
	t.Helper()
	istiod.Lock()
	defer istiod.Unlock()
	if istiod.configMaps == nil {
		istiod.configMaps = map[string]object{}
		manifest := output(t, nil, command(t, program(t, "istio", "istioctl"), "manifest", "generate"))
		for document := range strings.SplitSeq(manifest, "\n---\n") {
			if o := parse(t, document); o["kind"] == "ConfigMap" {
				istiod.configMaps[at(o, "metadata")["name"].(string)] = at(o, "data")
			}
		}
	}
	return istiod.configMaps[name]
}

// injectIstio injects the pod as an istiod does that was installed with these values, and returns the mesh's configuration
// too.
func injectIstio(t *testing.T, values, mesh, pod object) (injected, meshConfig object) {
	t.Helper()
	istioctl := program(t, "istio", "istioctl")
	injector := istiodConfig(t, "istio-sidecar-injector")
	revision := values["revision"].(string)
	valuesJSON, err := json.Marshal(merge(parse(t, injector["values"].(string)), values))
	if err != nil {
		t.Fatal(err)
	}
	meshYAML := render(t, merge(parse(t, istiodConfig(t, "istio")["mesh"].(string)), mesh))
	dir := t.TempDir()
	args := []string{"kube-inject", "--revision", revision, "--kubeconfig", serveAPI(t, nil, nil)}
	for flag, content := range map[string]string{
		"--filename": render(t, pod), "--injectConfigFile": injector["config"].(string), "--valuesFile": string(valuesJSON), "--meshConfigFile": meshYAML,
	} {
		file := filepath.Join(dir, strings.TrimPrefix(flag, "--"))
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, flag, file)
	}
	name := "istio"
	if revision != "default" {
		name += "-" + revision
	}
	meshConfig = object{"apiVersion": "v1", "kind": "ConfigMap", "metadata": object{"namespace": "istio-system", "name": name}, "data": object{"mesh": meshYAML}}
	return parse(t, output(t, nil, command(t, istioctl, args...))), meshConfig
}

// addIstio runs ADD of istio's own CNI plugin.
func addIstio(t *testing.T, addresses []string, ns *nettest.Namespace, pod object) {
	t.Helper()
	plugin := program(t, "istio", "istio-cni")
	kubeconfig, err := os.ReadFile(serveAPI(t, nil, map[string]object{"/api/v1/namespaces/shop/pods/web": pod}))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "istio-cni-kubeconfig"), kubeconfig, 0o600); err != nil {
		t.Fatal(err)
	}
	add(t, plugin, merge(netConf("istio-cni", addresses), object{"cni_agent_run_dir": dir, "exclude_namespaces": []string{"kube-system"}}), ns)
}

// validate runs the pod's istio-validation in a namespace. A pod without it is fine.
func validate(t *testing.T, pod object, addresses []string, ns *nettest.Namespace) error {
	t.Helper()
	for _, c := range containers(pod, "initContainers") {
		if c["name"] != "istio-validation" {
			continue
		}
		words := argv(c, program(t, "istio", "pilot-agent"))
		cmd := command(t, words[0], words[1:]...)
		cmd.Env = environ(c, strings.Split(addresses[0], "/")[0])
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: userOf(c, "runAsUser"), Gid: userOf(c, "runAsGroup"), NoSetGroups: true}}
		_, err := tryOutput(ns, cmd)
		return err
	}
	return nil
}

// userOf is the user or the group that a container says it runs as.
func userOf(c object, field string) uint32 {
	id, _ := at(c, "securityContext")[field].(float64)
	return uint32(id)
}
