package conformance

import (
	"fmt"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// family are the meshes that descend from OSM: an init container with iptables-restore programs their pods.
var family = []struct {
	mesh     string // detour's name for it
	injector injector
	init     string
	// without leaves the init container out; where nothing in the MeshConfig does, it is empty.
	without string
	// chains renames the mesh's chains to those that detour has from the mesh's guide.
	chains *strings.Replacer
}{
	{"osm-v1", osmInjector, "osm-init", "", strings.NewReplacer()},
	{"osm-edge", edgeInjector, "osm-init", "{traffic: {interceptionMode: none}}", strings.NewReplacer("OSM_PROXY_OUTBOUND", "PROXY_OUTPUT", "OSM_PROXY_OUT_REDIRECT", "PROXY_REDIRECT", "OSM_PROXY_IN", "PROXY_IN")},
	{"fsm", fsmInjector, "fsm-init", "", strings.NewReplacer()},
}

// familyCases are pods of namespace shop, and the MeshConfig's spec. DOMAIN is the mesh's.
var familyCases = []struct{ name, annotations, spec, meshConfig string }{
	{"plain", "", "", ""},
	{"excluded ports", "DOMAIN/outbound-port-exclusion-list: '6379, 5432', DOMAIN/inbound-port-exclusion-list: '9100'", "", ""},
	{"excluded ranges", "DOMAIN/outbound-ip-range-exclusion-list: '10.1.0.0/16,192.0.2.7/32'", "", ""},
	{"included ranges", "DOMAIN/outbound-ip-range-inclusion-list: '10.1.0.0/16,10.2.0.0/16'", "", ""},
	{
		"lists of the mesh", "", "",
		"{traffic: {outboundPortExclusionList: [6379, 7070], inboundPortExclusionList: [9100], outboundIPRangeExclusionList: [10.3.0.0/16], outboundIPRangeInclusionList: [10.2.0.0/16], networkInterfaceExclusionList: [net1]}}",
	},
	{
		"lists of both", "DOMAIN/outbound-port-exclusion-list: '5432,6379', DOMAIN/inbound-port-exclusion-list: '9101', DOMAIN/outbound-ip-range-exclusion-list: '10.4.0.0/16', DOMAIN/outbound-ip-range-inclusion-list: '10.5.0.0/16'", "",
		"{traffic: {outboundPortExclusionList: [6379, 7070], inboundPortExclusionList: [9100], outboundIPRangeExclusionList: [10.3.0.0/16], outboundIPRangeInclusionList: [10.2.0.0/16], networkInterfaceExclusionList: [net1, net2]}}",
	},
	{"fifteen ports", "DOMAIN/outbound-port-exclusion-list: '1,2,3,4,5,6,7,8,9,10,11,12,13,14,15'", "", ""},
	{"HTTP probes", "", "containers: [{name: app, image: app, ports: [{containerPort: 8080}], livenessProbe: {httpGet: {port: 8080}}, readinessProbe: {httpGet: {port: 8080}}, startupProbe: {httpGet: {port: 8080}}}]", ""},
	{"TCP probe", "", "containers: [{name: app, image: app, ports: [{containerPort: 8080}], livenessProbe: {tcpSocket: {port: 8080}}}]", ""},
	{"init containers", "", "initContainers: [{name: migrate, image: app, securityContext: {runAsUser: 4000}}], containers: [{name: app, image: app}]", ""},
	{"native sidecar of another", "", "initContainers: [{name: log, image: log, restartPolicy: Always}], containers: [{name: app, image: app}]", ""},
	{"users", "", "securityContext: {runAsUser: 1000}, containers: [{name: app, image: app, securityContext: {runAsUser: 0}}, {name: other, image: app}]", ""},
	{"PodIP", "", "", "{sidecar: {localProxyMode: PodIP}}"},
	{"DNS proxy", "", "", "{sidecar: {localDNSProxy: {enable: true}}}"},
}

// osm's init containers know IPv4 only.
var ipv4Only = []string{"10.77.0.2/24"}

func TestTheOSMFamily(t *testing.T) {
	t.Parallel()
	for _, mesh := range family {
		for _, c := range familyCases {
			if c.name == "DNS proxy" && mesh.mesh == "osm-v1" {
				continue // it has none
			}
			t.Run(mesh.mesh+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				spec := c.spec
				if spec == "" {
					spec = "containers: [{name: app, image: app}]"
				}
				metadata := fmt.Sprintf("namespace: shop, name: web, uid: uid-1, annotations: {%s}", strings.ReplaceAll(c.annotations, "DOMAIN", mesh.injector.domain))
				pod := func() object {
					return parse(t, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {%s}, spec: {%s}}", metadata, spec))
				}
				meshConfig := mesh.injector.meshConfig(t, c.meshConfig)
				injected := mesh.injector.inject(t, meshConfig, pod())
				theirs := startPod(t, ipv4Only)
				runInit(t, takeOut(injected, mesh.init), theirs)

				if mesh.without != "" {
					meshConfig = merge(meshConfig, object{"spec": parse(t, mesh.without)})
					injected = mesh.injector.inject(t, meshConfig, pod())
				}
				ours := startPod(t, ipv4Only)
				logged := addDetour(t, mesh.mesh, ipv4Only, ours, injected, meshConfig)
				if logged["outcome"] != "programmed" || logged["warnings"] != nil {
					t.Errorf("logged: %v", logged)
				}
				want := snapshot(t, theirs)
				want["IPv4 rules"] = mesh.chains.Replace(want["IPv4 rules"])
				compare(t, snapshot(t, ours), want)
			})
		}
	}
}

// runInit runs an init container's command in a pod's namespace, with this machine's iptables.
func runInit(t *testing.T, c object, pod *nettest.Namespace) {
	t.Helper()
	if c == nil {
		t.Fatal("the injector adds no init container")
	}
	words := argv(c, "")
	cmd := command(t, words[0], words[1:]...)
	cmd.Env = environ(c, "10.77.0.2")
	output(t, pod, cmd)
}
