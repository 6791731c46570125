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

// annotations of the OSM family, behind the dialect's prefix.
const (
	sidecarInjection  = "sidecar-injection"
	outboundPorts     = "outbound-port-exclusion-list"
	inboundPorts      = "inbound-port-exclusion-list"
	outboundRanges    = "outbound-ip-range-exclusion-list"
	outboundInclusion = "outbound-ip-range-inclusion-list"
)

// localDNSServer is the nameserver that the injector gives a pod whose proxy answers its queries. Later versions of FSM give
// it the control plane's, which needs no rule.
const localDNSServer = "127.0.0.153"

// meshConfig is what a MeshConfig, of any version, says of redirection; the zero value stands for the mesh's defaults.
type meshConfig struct {
	excludeRanges, includeRanges []redirect.Range
	outboundPorts, inboundPorts  []redirect.Port
	interfaces                   []redirect.Interface
	podIP                        bool
	localDNS                     bool
}

func (d Dialect) skipOSM(p pod.Pod) (string, error) {
	name := d.Prefix + sidecarInjection
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

func (d Dialect) decideOSM(in Input, out *Decision) error {
	if err := d.refuseOwner(in.Pod, d.UID, d.GID); err != nil {
		return fmt.Errorf("pod %s: %w", in.Pod, err)
	}
	var c meshConfig
	if in.Config != nil {
		var err error
		if c, err = d.parseMeshConfig(in.Config, out); err != nil {
			return fmt.Errorf("%s: %w", d.Config, err)
		}
	}
	policy, err := d.osmPolicy(in, c, out)
	if err != nil {
		return fmt.Errorf("pod %s: %w", in.Pod, err)
	}
	out.Policy, out.Families = policy, rules.FamiliesOf(in.Addresses)
	d.warnPorts(in.Pod, append([]uint16{d.Ports.Admin, d.Ports.Outbound, d.Ports.Inbound}, d.ProxyPorts...), out)
	if c, _ := in.Pod.Find(d.Sidecar); c.RunAsUser != nil && *c.RunAsUser != int64(d.UID) {
		out.warn("container %q runs as UID %d, not %d: its own connections would be redirected to itself", c.Name, *c.RunAsUser, d.UID)
	}
	return nil
}

func (d Dialect) osmPolicy(in Input, c meshConfig, out *Decision) (redirect.OSM, error) {
	a := annotations{d.Prefix, in.Pod.Annotations}
	excluded, err := list(a, outboundRanges, parseRange)
	if err != nil {
		return redirect.OSM{}, err
	}
	included, err := list(a, outboundInclusion, parseRange)
	if err != nil {
		return redirect.OSM{}, err
	}
	outbound, err := list(a, outboundPorts, parsePort)
	if err != nil {
		return redirect.OSM{}, err
	}
	inbound, err := list(a, inboundPorts, parsePort)
	if err != nil {
		return redirect.OSM{}, err
	}
	users, err := d.directUsers(in, d.UID, out)
	if err != nil {
		return redirect.OSM{}, err
	}
	wait, err := d.afterProxyStart(in, d.UID, out)
	if err != nil {
		return redirect.OSM{}, err
	}
	if len(included) > 0 && !d.Features.Inclusion {
		out.warn("%s%s is set, but mesh %s knows no such thing: ignored", d.Prefix, outboundInclusion, d.Name)
		included = nil
	}
	policy := redirect.OSM{
		Chains:    d.Chains,
		Proxy:     redirect.Proxy{UID: d.UID, Inbound: d.Ports.Inbound, Outbound: d.Ports.Outbound, Admin: d.Ports.Admin},
		SelfCalls: d.Features.SelfCalls,
		Outbound: redirect.Outbound{ // the injector lists the pod's ranges first and the mesh's ports first
			ExcludeRanges:     union(rangePrefix, excluded, c.excludeRanges),
			IncludeRanges:     union(rangePrefix, included, c.includeRanges),
			ExcludePorts:      union(portNumber, c.outboundPorts, outbound),
			ExcludeInterfaces: c.interfaces,
			ExcludeUsers:      users,
		},
		Inbound: redirect.Inbound{
			ProxyPorts:        d.ProxyPorts,
			ExcludePorts:      union(portNumber, c.inboundPorts, inbound),
			ExcludeInterfaces: c.interfaces,
		},
		LocalDNS: c.localDNS && slices.Contains(in.Pod.Nameservers, localDNSServer),
		Gated:    wait,
	}
	if c.podIP {
		policy.PodIPs = onePerFamily(in.Addresses)
	}
	return policy, nil
}

// onePerFamily keeps the first address of each family, as the pod's status does.
func onePerFamily(addresses []netip.Addr) []netip.Addr {
	return union(func(a netip.Addr) bool { return a.Is4() }, addresses)
}

// parseMeshConfig reads a MeshConfig of any version from its JSON. Errors name the field and the entry. A field that the
// mesh does not have is left out with a warning.
func (d Dialect) parseMeshConfig(data []byte, out *Decision) (meshConfig, error) {
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
		return meshConfig{}, err
	}
	if w.Kind != d.Config.Kind {
		return meshConfig{}, fmt.Errorf("kind: got %s, want %q", quote(w.Kind), d.Config.Kind)
	}
	t, sidecar := w.Spec.Traffic, w.Spec.Sidecar
	has := func(field string, set, known bool) bool {
		if set && !known {
			out.warn("%s: %s is set, but mesh %s knows no such thing: ignored", d.Config, field, d.Name)
		}
		return set && known
	}
	if !has("spec.traffic.outboundIPRangeInclusionList", len(t.IncludeRanges) > 0, d.Features.Inclusion) {
		t.IncludeRanges = nil
	}
	if !has("spec.traffic.networkInterfaceExclusionList", len(t.Interfaces) > 0, d.Features.Interfaces) {
		t.Interfaces = nil
	}
	c := meshConfig{
		podIP:    has("spec.sidecar.localProxyMode", sidecar.LocalProxyMode == "PodIP", d.Features.PodIP),
		localDNS: has("spec.sidecar.localDNSProxy", sidecar.LocalDNSProxy.Enable, d.Features.LocalDNS),
	}
	if m := sidecar.LocalProxyMode; m != "" && m != "PodIP" && m != "Localhost" {
		return meshConfig{}, fmt.Errorf("spec.sidecar.localProxyMode: %s is neither Localhost nor PodIP", quote(m))
	}
	var err error
	if c.excludeRanges, err = parseList("spec.traffic.outboundIPRangeExclusionList", t.ExcludeRanges, parseRange); err != nil {
		return meshConfig{}, err
	}
	if c.includeRanges, err = parseList("spec.traffic.outboundIPRangeInclusionList", t.IncludeRanges, parseRange); err != nil {
		return meshConfig{}, err
	}
	if c.outboundPorts, err = parseList("spec.traffic.outboundPortExclusionList", texts(t.OutboundPorts), parsePort); err != nil {
		return meshConfig{}, err
	}
	if c.inboundPorts, err = parseList("spec.traffic.inboundPortExclusionList", texts(t.InboundPorts), parsePort); err != nil {
		return meshConfig{}, err
	}
	c.interfaces, err = parseList("spec.traffic.networkInterfaceExclusionList", t.Interfaces, parseInterface)
	c.interfaces = union(interfaceName, c.interfaces)
	return c, err
}

func texts(numbers []json.Number) []string {
	var out []string
	for _, n := range numbers {
		out = append(out, n.String())
	}
	return out
}
