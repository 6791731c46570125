package mesh

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/pod"
)

// Whoever writes pods or configurations fills nobody's log: of a long value its beginning and its length are quoted, once.
func TestALongValueIsNotRepeated(t *testing.T) {
	const most = 600
	long := strings.Repeat("\x01é", 250_000/3)
	osmAnnotations := []string{sidecarInjection, outboundPorts, inboundPorts, outboundRanges, outboundInclusion}
	istioAnnotationNames := []string{
		istioMode, istioReroute, istioKubevirt, "istio.io/rev", DirectInitAnnotation, GateAnnotation,
		istioTraffic + "includeInboundPorts", istioTraffic + "excludeInboundPorts", istioTraffic + "includeOutboundPorts",
		istioTraffic + "excludeOutboundPorts", istioTraffic + "includeOutboundIPRanges", istioTraffic + "excludeOutboundIPRanges",
		istioTraffic + "excludeInterfaces",
	}
	inputs := map[string]Input{}
	add := func(mesh, name string, in Input) { inputs[mesh+" "+name] = in }
	for _, name := range osmAnnotations {
		add("osm-v1", name, Input{Pod: meshed(map[string]string{"openservicemesh.io/" + name: long})})
	}
	for _, field := range []string{
		`"traffic":{"outboundIPRangeExclusionList":[%q]}`, `"traffic":{"outboundIPRangeInclusionList":[%q]}`,
		`"traffic":{"networkInterfaceExclusionList":[%q]}`, `"sidecar":{"localProxyMode":%q}`,
	} {
		value := strings.Repeat("x", 250_000)
		add("osm-v1", field, Input{Pod: meshed(nil), Config: fmt.Appendf(nil, `{"kind":"MeshConfig","spec":{`+field+`}}`, value)})
	}
	add("osm-v1", "kind", Input{Pod: meshed(nil), Config: fmt.Appendf(nil, `{"kind":%q}`, strings.Repeat("x", 250_000))})
	istioPod := func(annotations, env map[string]string, args ...string) pod.Pod {
		all := map[string]string{istioStatus: "{}"}
		maps.Copy(all, annotations)
		return pod.Pod{Namespace: "shop", Name: "web", Annotations: all, Containers: []pod.Container{{Name: "app"}, {Name: "istio-proxy", Env: env, Args: args}}}
	}
	for _, name := range istioAnnotationNames {
		add("istio", name, Input{Pod: istioPod(map[string]string{name: long}, nil)})
	}
	for _, name := range []string{"DISABLE_ENVOY", "ISTIO_META_DNS_CAPTURE", "INVALID_DROP", "ISTIO_DUAL_STACK", "ISTIO_META_INTERCEPTION_MODE"} {
		add("istio", name, Input{Pod: istioPod(nil, map[string]string{name: long})})
	}
	add("istio", "args", Input{Pod: istioPod(nil, nil, "proxy", long)})
	add("istio", "kind", Input{Pod: istioPod(nil, nil), Config: fmt.Appendf(nil, `{"kind":%q}`, strings.Repeat("x", 250_000))})

	for name, in := range inputs {
		mesh, _, _ := strings.Cut(name, " ")
		d, _ := Find(mesh)
		decision, err := d.Decide(in)
		said := decision.Skip + strings.Join(decision.Warnings, "\n")
		if err != nil {
			said = err.Error()
		}
		if said == "" || len(said) > most || !strings.Contains(said, " bytes)") {
			t.Errorf("%s: %d bytes are said: %.200s", name, len(said), said)
		}
	}
}
