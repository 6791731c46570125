package mesh

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

// osmFamily is Open Service Mesh and its successors. A MeshConfig holds what is for the whole mesh, annotations add to it.
type osmFamily struct {
	Chains redirect.Chains
	// What later members have and the first does not:
	SelfCalls  bool       // the proxy may call the pod's own service through itself
	Inclusion  bool       // outbound IP range inclusion lists
	Interfaces bool       // networkInterfaceExclusionList
	PodIP      bool       // localProxyMode: PodIP
	LocalDNS   netip.Addr // localDNSProxy: the nameserver of pods whose proxy answers DNS queries
}

// The family's annotations, behind the row's one prefix.
const (
	sidecarInjection  = "sidecar-injection"
	outboundPorts     = "outbound-port-exclusion-list"
	inboundPorts      = "inbound-port-exclusion-list"
	outboundRanges    = "outbound-ip-range-exclusion-list"
	outboundInclusion = "outbound-ip-range-inclusion-list"
)

func (f osmFamily) skip(d Dialect, p pod.Pod) (string, error) {
	name := d.Injection
	value, ok := p.Annotations[name]
	if !ok {
		return "", nil
	}
	switch strings.ToLower(value) {
	case "enabled", "yes", "true":
		return "", nil
	case "disabled", "no", "false":
		return fmt.Sprintf("its annotation %s is %q", name, value), nil
	}
	return "", fmt.Errorf("%s: %s is none of enabled, yes, true, disabled, no, false", name, quote(value))
}

func (f osmFamily) decide(d Dialect, in Input, out *Decision) error {
	c, err := f.meshConfig(d, in.Config, out)
	if err != nil {
		return configError{d.Config, err}
	}
	if out.Policy, err = f.policy(d, in, c, out); err != nil {
		return err
	}
	out.Families = rules.FamiliesOf(in.Addresses)
	if c, _ := in.Pod.Find(d.Sidecar); c.RunAsUser != nil && *c.RunAsUser != int64(d.Proxy.UID) {
		out.warn("container %q runs as UID %d, not %d: its own connections would be redirected to itself", c.Name, *c.RunAsUser, d.Proxy.UID)
	}
	return nil
}

func (f osmFamily) broadest(d Dialect) redirect.Policy {
	return redirect.OSM{Chains: f.Chains, Proxy: d.Proxy, SelfCalls: f.SelfCalls, LocalDNS: f.LocalDNS}
}

func (f osmFamily) policy(d Dialect, in Input, c meshConfig, out *Decision) (policy redirect.OSM, err error) {
	a, prefix := in.Pod.Annotations, d.Prefixes[0]
	excluded := annotated(&err, a, prefix+outboundRanges, parseRange)
	included := annotated(&err, a, prefix+outboundInclusion, parseRange)
	outbound := annotated(&err, a, prefix+outboundPorts, parsePort)
	inbound := annotated(&err, a, prefix+inboundPorts, parsePort)
	if err != nil {
		return policy, err
	}
	direct, gated, err := d.options(in, d.Proxy, out)
	if err != nil {
		return policy, err
	}
	if len(included) > 0 && !f.Inclusion {
		out.warn("%s%s is set, but mesh %s knows no such thing: ignored", prefix, outboundInclusion, d.Name)
		included = nil
	}
	policy = redirect.OSM{
		Chains:    f.Chains,
		Proxy:     d.Proxy,
		SelfCalls: f.SelfCalls,
		Outbound: redirect.Outbound{ // the injector lists the pod's ranges first and the mesh's ports first
			ExcludeRanges:     union(rangePrefix, excluded, c.excludeRanges),
			IncludeRanges:     union(rangePrefix, included, c.includeRanges),
			ExcludePorts:      union(portNumber, c.outboundPorts, outbound),
			ExcludeInterfaces: c.interfaces,
			ExcludeUsers:      direct,
		},
		Inbound: redirect.Inbound{
			ProxyPorts:        d.ProxyPorts,
			ExcludePorts:      union(portNumber, c.inboundPorts, inbound),
			ExcludeInterfaces: c.interfaces,
		},
		Gated: gated,
	}
	if c.localDNS && slices.Contains(in.Pod.Nameservers, f.LocalDNS.String()) {
		policy.LocalDNS = f.LocalDNS
	}
	if c.podIP { // the first of each family, as in the pod's status
		policy.PodIPs = union(netip.Addr.Is4, in.Addresses)
	}
	return policy, nil
}

// meshConfig is what a MeshConfig, of any version, says of redirection; the zero value stands for the mesh's defaults.
type meshConfig struct {
	excludeRanges, includeRanges []redirect.Range
	outboundPorts, inboundPorts  []redirect.Port
	interfaces                   []redirect.Interface
	podIP                        bool
	localDNS                     bool
}

// meshConfig reads a MeshConfig from its JSON; nil is the zero meshConfig. Errors name the field and the entry. A field that
// the mesh does not have is ignored, with a warning.
func (f osmFamily) meshConfig(d Dialect, data []byte, out *Decision) (c meshConfig, err error) {
	if data == nil {
		return c, nil
	}
	var w struct {
		Kind string `json:"kind"`
		Spec struct {
			Traffic struct {
				ExcludeRanges []string      `json:"outboundIPRangeExclusionList"`
				IncludeRanges []string      `json:"outboundIPRangeInclusionList"`
				OutboundPorts []json.Number `json:"outboundPortExclusionList"`
				InboundPorts  []json.Number `json:"inboundPortExclusionList"`
				Interfaces    []string      `json:"networkInterfaceExclusionList"`
			} `json:"traffic"`
			Sidecar struct {
				LocalProxyMode string `json:"localProxyMode"`
				LocalDNSProxy  struct {
					Enable bool `json:"enable"`
				} `json:"localDNSProxy"`
			} `json:"sidecar"`
		} `json:"spec"`
	}
	if err := decode(data, &w); err != nil {
		return c, err
	}
	if err := d.checkKind(w.Kind); err != nil {
		return c, err
	}
	t, sidecar := w.Spec.Traffic, w.Spec.Sidecar
	has := func(field string, set, known bool) bool {
		if set && !known {
			out.warn("%s: %s is set, but mesh %s knows no such thing: ignored", d.Config, field, d.Name)
		}
		return set && known
	}
	if !has("spec.traffic.outboundIPRangeInclusionList", len(t.IncludeRanges) > 0, f.Inclusion) {
		t.IncludeRanges = nil
	}
	if !has("spec.traffic.networkInterfaceExclusionList", len(t.Interfaces) > 0, f.Interfaces) {
		t.Interfaces = nil
	}
	c.podIP = has("spec.sidecar.localProxyMode", sidecar.LocalProxyMode == "PodIP", f.PodIP)
	c.localDNS = has("spec.sidecar.localDNSProxy", sidecar.LocalDNSProxy.Enable, f.LocalDNS.IsValid())
	if m := sidecar.LocalProxyMode; m != "" && m != "PodIP" && m != "Localhost" {
		return c, fmt.Errorf("spec.sidecar.localProxyMode: %s is neither Localhost nor PodIP", quote(m))
	}
	c.excludeRanges = parseList(&err, "spec.traffic.outboundIPRangeExclusionList", t.ExcludeRanges, parseRange)
	c.includeRanges = parseList(&err, "spec.traffic.outboundIPRangeInclusionList", t.IncludeRanges, parseRange)
	c.outboundPorts = parseList(&err, "spec.traffic.outboundPortExclusionList", texts(t.OutboundPorts), parsePort)
	c.inboundPorts = parseList(&err, "spec.traffic.inboundPortExclusionList", texts(t.InboundPorts), parsePort)
	c.interfaces = parseList(&err, "spec.traffic.networkInterfaceExclusionList", t.Interfaces, parseInterface)
	return c, err
}

func texts(numbers []json.Number) []string {
	var out []string
	for _, n := range numbers {
		out = append(out, n.String())
	}
	return out
}
