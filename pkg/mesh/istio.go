package mesh

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

// istio's annotations and labels.
const (
	istioInject      = "sidecar.istio.io/inject"
	istioStatus      = "sidecar.istio.io/status"
	istioMode        = "sidecar.istio.io/interceptionMode"
	istioTraffic     = "traffic.sidecar.istio.io/"
	istioReroute     = "istio.io/reroute-virtual-interfaces"
	istioKubevirt    = istioTraffic + "kubevirtInterfaces"
	istioEverything  = "*"
	istioMetricsPort = 15020 // merged Prometheus telemetry
	istioHealthPort  = 15021
	istioEnvoyPort   = 15090 // Envoy's own telemetry
)

func (d Dialect) skipIstio(p pod.Pod) (string, error) {
	sidecar, _ := p.Find(d.Sidecar)
	if off, err := boolEnv(sidecar, "DISABLE_ENVOY"); err != nil || off {
		return fmt.Sprintf("container %q has DISABLE_ENVOY=true: there is no proxy", d.Sidecar), err
	}
	if args := sidecar.Args; len(args) > 1 && args[0] == "proxy" && args[1] != "sidecar" {
		return fmt.Sprintf("container %q is a %s, not a sidecar", d.Sidecar, quote(args[1])), nil
	}
	inject, where := p.Labels[istioInject], "label"
	if inject == "" {
		inject, where = p.Annotations[istioInject], "annotation"
	}
	if inject == "false" {
		return fmt.Sprintf("its %s %s is %q", where, istioInject, inject), nil
	}
	if _, ok := p.Annotations[istioStatus]; !ok {
		return fmt.Sprintf("it has no annotation %s: istio did not inject it", istioStatus), nil
	}
	if p.Annotations[istioMode] == "NONE" {
		return fmt.Sprintf("its annotation %s is NONE", istioMode), nil
	}
	return "", nil
}

// istioAnnotations are the lists that a pod may have. A list that holds everything is "*", one that holds nothing is "".
type istioAnnotations struct {
	values map[string]string
	err    error // the first
}

// istioList reads a list; all is true for "*", which only an include list may be.
func istioList[T any](a *istioAnnotations, name, absent string, mayBeAll bool, parse func(origin, entry string) (T, error)) (entries []T, all bool) {
	value, ok := a.values[name]
	if !ok {
		value = absent
	}
	value = strings.TrimSpace(value)
	switch {
	case value == "":
		return nil, false
	case value == istioEverything && mayBeAll:
		return nil, true
	}
	entries, err := parseList(name, strings.Split(value, ","), parse)
	if err != nil && a.err == nil {
		a.err = err
	}
	return entries, false
}

func (d Dialect) decideIstio(in Input, out *Decision) error {
	if revision := revisionOf(in.Pod.Annotations, in.Pod.Labels); !IsName(revision) {
		return fmt.Errorf("pod %s: %s: %s is not the name of a revision", in.Pod, istioRevision, quote(revision))
	}
	ports, err := d.istioPorts(in.Config)
	if err != nil {
		return fmt.Errorf("%s: %w", d.ConfigFor(in.Pod.Annotations, in.Pod.Labels), err)
	}
	policy, err := d.istioPolicy(in, ports, out)
	if err != nil {
		return fmt.Errorf("pod %s: %w", in.Pod, err)
	}
	out.Policy = policy
	if out.Families, err = d.istioFamilies(in, out); err != nil {
		return fmt.Errorf("pod %s: %w", in.Pod, err)
	}
	d.warnPorts(in.Pod, []uint16{ports.Outbound, ports.Inbound, ports.Tunnel, istioMetricsPort, istioHealthPort, istioEnvoyPort}, out)
	return nil
}

// istioPorts are the proxy's listeners, of which the mesh's ConfigMap may move two.
func (d Dialect) istioPorts(config []byte) (Ports, error) {
	ports := d.Ports
	if config == nil {
		return ports, nil
	}
	var object struct {
		Kind string            `json:"kind"`
		Data map[string]string `json:"data"`
	}
	if err := decode(config, &object); err != nil {
		return ports, err
	}
	if object.Kind != d.Config.Kind {
		return ports, fmt.Errorf("kind: got %s, want %q", quote(object.Kind), d.Config.Kind)
	}
	var mesh struct {
		Outbound *int64 `json:"proxyListenPort"`
		Inbound  *int64 `json:"proxyInboundListenPort"`
	}
	if err := yaml.Unmarshal([]byte(object.Data["mesh"]), &mesh); err != nil {
		return ports, fmt.Errorf("data.mesh: %w", err)
	}
	for _, p := range []struct {
		field string
		value *int64
		port  *uint16
	}{{"proxyListenPort", mesh.Outbound, &ports.Outbound}, {"proxyInboundListenPort", mesh.Inbound, &ports.Inbound}} {
		if p.value == nil || *p.value == 0 { // 0 is protobuf's way to say nothing
			continue
		}
		if *p.value < 1 || *p.value > 65535 {
			return ports, fmt.Errorf("data.mesh: %s: %d: a port is 1 to 65535", p.field, *p.value)
		}
		*p.port = uint16(*p.value)
	}
	return ports, nil
}

func (d Dialect) istioPolicy(in Input, ports Ports, out *Decision) (redirect.Istio, error) {
	sidecar, _ := in.Pod.Find(d.Sidecar)
	policy := redirect.Istio{Proxy: redirect.IstioProxy{
		UIDs:    []uint32{idOr(sidecar.RunAsUser, d.UID)},
		GIDs:    []uint32{idOr(sidecar.RunAsGroup, d.GID)},
		Inbound: ports.Inbound, Outbound: ports.Outbound, Tunnel: ports.Tunnel, DNS: ports.DNS,
	}}
	if err := d.refuseOwner(in.Pod, policy.Proxy.UIDs[0], policy.Proxy.GIDs[0]); err != nil {
		return policy, err
	}
	switch mode := in.Pod.Annotations[istioMode]; mode {
	case "", "REDIRECT":
	case "TPROXY":
		policy.TProxy = true
	default:
		return policy, fmt.Errorf("%s: %s is none of REDIRECT, TPROXY, NONE", istioMode, quote(mode))
	}
	for _, e := range []struct {
		name string
		set  *bool
	}{{"ISTIO_META_DNS_CAPTURE", &policy.DNSCapture}, {"INVALID_DROP", &policy.DropInvalid}} {
		var err error
		if *e.set, err = readEnv(sidecar, e.name, out); err != nil {
			return policy, err
		}
	}
	var err error
	if policy.Outbound.ExcludeUsers, err = d.directUsers(in, policy.Proxy.UIDs[0], out); err != nil {
		return policy, err
	}
	if policy.Gated, err = d.afterProxyStart(in, policy.Proxy.UIDs[0], out); err != nil {
		return policy, err
	}
	if err := istioLists(in.Pod.Annotations, &policy); err != nil {
		return policy, err
	}
	d.warnInjector(in.Pod, sidecar, policy.TProxy, out)
	if policy.TProxy && len(policy.VirtualInterfaces) > 0 {
		out.warn("%s TPROXY and virtual interfaces do not go together: answers to the virtual machine are delivered to the pod", istioMode)
	}
	return policy, nil
}

// warnInjector warns of a pod that was injected for istio-init, which is gone. What holds for the whole mesh (mode, ports,
// ranges) the injector writes into istio-init's arguments then, and into annotations only where it knows of a CNI plugin.
func (d Dialect) warnInjector(p pod.Pod, sidecar pod.Container, tproxy bool, out *Decision) {
	var status struct{ InitContainers []string }
	if err := json.Unmarshal([]byte(p.Annotations[istioStatus]), &status); err == nil && slices.Contains(status.InitContainers, d.InitContainer) {
		out.warn("istio injected init container %q, which was taken out: the mesh-wide interception mode, ports and ranges were its arguments and are lost; set pilot.cni.enabled=true for istiod, and it writes them as annotations instead", d.InitContainer)
	}
	its, ours := sidecar.Env["ISTIO_META_INTERCEPTION_MODE"], "REDIRECT"
	if tproxy {
		ours = "TPROXY"
	}
	if its != "" && its != ours {
		out.warn("container %q is set up for interception mode %s, but the annotation %s makes it %s: inbound connections may be lost; set pilot.cni.enabled=true for istiod, and it writes the annotation", sidecar.Name, quote(its), istioMode, ours)
	}
}

// istioFamilies are the families in which the sidecar listens: IPv4, and IPv6 too if that is all the pod has, or with
// ISTIO_DUAL_STACK. The order of the addresses does not count: istio reads them off the interfaces, where the kernel lists
// IPv4 first.
func (d Dialect) istioFamilies(in Input, out *Decision) ([]rules.Family, error) {
	sidecar, _ := in.Pod.Find(d.Sidecar)
	dual, err := readEnv(sidecar, "ISTIO_DUAL_STACK", out)
	if err != nil {
		return nil, err
	}
	own := rules.FamiliesOf(slices.DeleteFunc(slices.Clone(in.Addresses), func(a netip.Addr) bool { return a.IsLoopback() || a.IsLinkLocalUnicast() }))
	if !slices.Contains(own, rules.IPv6) {
		return []rules.Family{rules.IPv4}, nil
	}
	if slices.Contains(own, rules.IPv4) && !dual {
		out.warn("the pod has addresses of both families, but its proxy listens on IPv4 only: what it does over IPv6 goes direct, past the mesh; ISTIO_DUAL_STACK=true, for istiod and in the mesh's proxyMetadata, makes the proxy listen on both")
		return []rules.Family{rules.IPv4}, nil
	}
	return rules.Families, nil
}

// istioLists reads the lists of ports, ranges and interfaces into the policy.
func istioLists(values map[string]string, p *redirect.Istio) error {
	a := &istioAnnotations{values: values}
	outbound, inbound := &p.Outbound, &p.Inbound
	outbound.IncludeRanges, outbound.All = istioList(a, istioTraffic+"includeOutboundIPRanges", istioEverything, true, parseRange)
	outbound.ExcludeRanges, _ = istioList(a, istioTraffic+"excludeOutboundIPRanges", "", false, parseRange)
	outbound.IncludePorts, _ = istioList(a, istioTraffic+"includeOutboundPorts", "", false, parsePort)
	outbound.ExcludePorts, _ = istioList(a, istioTraffic+"excludeOutboundPorts", fmt.Sprint(istioMetricsPort), false, parsePort)
	inbound.IncludePorts, inbound.All = istioList(a, istioTraffic+"includeInboundPorts", istioEverything, true, parsePort)
	inbound.ExcludePorts, _ = istioList(a, istioTraffic+"excludeInboundPorts", fmt.Sprint(istioMetricsPort), false, parsePort)
	p.ExcludeInterfaces, _ = istioList(a, istioTraffic+"excludeInterfaces", "", false, parseInterface)
	virtual := istioReroute
	if values[virtual] == "" {
		virtual = istioKubevirt
	}
	p.VirtualInterfaces, _ = istioList(a, virtual, "", false, parseInterface)

	for _, n := range []uint16{istioMetricsPort, istioHealthPort, istioEnvoyPort} {
		inbound.ExcludePorts = append(inbound.ExcludePorts, redirect.Port{Number: n, Origin: "istio, as the proxy serves it itself"})
	}
	inbound.ExcludePorts = union(portNumber, inbound.ExcludePorts)
	outbound.ExcludePorts = union(portNumber, outbound.ExcludePorts)
	outbound.IncludePorts = union(portNumber, outbound.IncludePorts)
	inbound.IncludePorts = union(portNumber, inbound.IncludePorts)
	outbound.IncludeRanges = union(rangePrefix, outbound.IncludeRanges)
	outbound.ExcludeRanges = union(rangePrefix, outbound.ExcludeRanges)
	p.ExcludeInterfaces = union(interfaceName, p.ExcludeInterfaces)
	p.VirtualInterfaces = union(interfaceName, p.VirtualInterfaces)
	return a.err
}

// idOr returns a container's user or group, or the mesh's if it names none or root.
func idOr(id *int64, otherwise uint32) uint32 {
	if id == nil || *id <= 0 || *id > maxUID {
		return otherwise
	}
	return uint32(*id)
}

// readEnv is boolEnv, and warns of a value from elsewhere.
func readEnv(c pod.Container, name string, out *Decision) (bool, error) {
	if slices.Contains(c.EnvFrom, name) {
		out.warn("container %q takes %s from elsewhere, which can't be looked up: it counts as not set", c.Name, name)
	}
	return boolEnv(c, name)
}

// boolEnv reads a variable with a literal value; not set is false.
func boolEnv(c pod.Container, name string) (bool, error) {
	value, ok := c.Env[name]
	if !ok || value == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("container %q: env %s: %s is neither true nor false", c.Name, name, quote(value))
	}
	return v, nil
}
