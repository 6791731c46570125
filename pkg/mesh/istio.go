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

// istioFamily is istio. Annotations and the sidecar's environment hold what is for the pod; the mesh's ConfigMap may move the
// proxy's listeners.
type istioFamily struct{}

// istio's annotations and labels.
const (
	istioInject   = "sidecar.istio.io/inject"
	istioStatus   = "sidecar.istio.io/status"
	istioMode     = "sidecar.istio.io/interceptionMode"
	istioTraffic  = "traffic.sidecar.istio.io/"
	istioReroute  = "istio.io/reroute-virtual-interfaces"
	istioKubevirt = istioTraffic + "kubevirtInterfaces"
)

// istioMetricsPort is what a pod without a list of excluded ports excludes: merged Prometheus telemetry.
const istioMetricsPort = "15020"

func (istioFamily) skip(d Dialect, p pod.Pod) (string, error) {
	sidecar, _ := p.Find(d.Sidecar)
	if off, err := boolEnv(sidecar, "DISABLE_ENVOY"); err != nil || off {
		return fmt.Sprintf("container %q has DISABLE_ENVOY=true: there is no proxy", d.Sidecar), err
	}
	if args := sidecar.Args; len(args) > 1 && args[0] == "proxy" && args[1] != "sidecar" {
		return fmt.Sprintf("container %q is a %s, not a sidecar", d.Sidecar, quote(args[1])), nil
	}
	inject, where := p.Labels[d.Injection], "label"
	if inject == "" {
		inject, where = p.Annotations[d.Injection], "annotation"
	}
	if inject == "false" {
		return fmt.Sprintf("its %s %s is %q", where, d.Injection, inject), nil
	}
	if _, ok := p.Annotations[d.Marker]; !ok {
		return fmt.Sprintf("it has no annotation %s: istio did not inject it", d.Marker), nil
	}
	if p.Annotations[istioMode] == "NONE" {
		return fmt.Sprintf("its annotation %s is NONE", istioMode), nil
	}
	return "", nil
}

func (f istioFamily) decide(d Dialect, in Input, out *Decision) error {
	proxy, err := f.listeners(d, in.Config)
	if err != nil {
		return configError{d.ConfigFor(in.Pod.Annotations, in.Pod.Labels), err}
	}
	sidecar, _ := in.Pod.Find(d.Sidecar)
	proxy.UID, proxy.GID = idOr(sidecar.RunAsUser, d.Proxy.UID), idOr(sidecar.RunAsGroup, d.Proxy.GID)
	if out.Policy, err = f.policy(d, in, proxy, out); err != nil {
		return err
	}
	out.Families, err = f.families(d, in, out)
	return err
}

func (istioFamily) broadest(d Dialect) redirect.Policy {
	return redirect.Istio{
		Proxy:  d.Proxy,
		TProxy: true, DropInvalid: true, DNSCapture: true,
		Inbound: redirect.IstioInbound{All: true}, Outbound: redirect.IstioOutbound{All: true},
	}
}

// listeners returns the row's proxy with the listeners that the mesh's ConfigMap moves.
func (istioFamily) listeners(d Dialect, config []byte) (redirect.Proxy, error) {
	proxy := d.Proxy
	if config == nil {
		return proxy, nil
	}
	var object struct {
		Kind string            `json:"kind"`
		Data map[string]string `json:"data"`
	}
	if err := decode(config, &object); err != nil {
		return proxy, err
	}
	if err := d.checkKind(object.Kind); err != nil {
		return proxy, err
	}
	var mesh struct {
		Outbound *int64 `json:"proxyListenPort"`
		Inbound  *int64 `json:"proxyInboundListenPort"`
	}
	if err := yaml.Unmarshal([]byte(object.Data["mesh"]), &mesh); err != nil {
		return proxy, fmt.Errorf("data.mesh: %w", err)
	}
	for _, p := range []struct {
		field string
		value *int64
		port  *uint16
	}{{"proxyListenPort", mesh.Outbound, &proxy.Outbound}, {"proxyInboundListenPort", mesh.Inbound, &proxy.Inbound}} {
		if p.value == nil || *p.value == 0 { // 0 is protobuf's way to say nothing
			continue
		}
		if *p.value < 1 || *p.value > 65535 {
			return proxy, fmt.Errorf("data.mesh: %s: %d: a port is 1 to 65535", p.field, *p.value)
		}
		*p.port = uint16(*p.value)
	}
	return proxy, nil
}

func (f istioFamily) policy(d Dialect, in Input, proxy redirect.Proxy, out *Decision) (redirect.Istio, error) {
	sidecar, _ := in.Pod.Find(d.Sidecar)
	policy := redirect.Istio{Proxy: proxy}
	switch mode := in.Pod.Annotations[istioMode]; mode {
	case "", "REDIRECT":
	case "TPROXY":
		policy.TProxy = true
	default:
		return policy, fmt.Errorf("%s: %s is none of REDIRECT, TPROXY, NONE", istioMode, quote(mode))
	}
	var err error
	if policy.DNSCapture, err = readEnv(sidecar, "ISTIO_META_DNS_CAPTURE", out); err != nil {
		return policy, err
	}
	if policy.DropInvalid, err = readEnv(sidecar, "INVALID_DROP", out); err != nil {
		return policy, err
	}
	if policy.Outbound.ExcludeUsers, policy.Gated, err = d.options(in, proxy, out); err != nil {
		return policy, err
	}
	if err := istioLists(d, in.Pod.Annotations, &policy); err != nil {
		return policy, err
	}
	f.warnInjector(d, in.Pod, sidecar, policy.TProxy, out)
	if policy.TProxy && len(policy.VirtualInterfaces) > 0 {
		out.warn("%s TPROXY and virtual interfaces do not go together: answers to the virtual machine are delivered to the pod", istioMode)
	}
	return policy, nil
}

// warnInjector warns of a pod that was injected for istio-init, which is gone. The injector writes the mesh-wide
// settings (mode, ports, ranges) into istio-init's arguments, and into annotations only if it knows of a CNI plugin.
func (istioFamily) warnInjector(d Dialect, p pod.Pod, sidecar pod.Container, tproxy bool, out *Decision) {
	var status struct{ InitContainers []string }
	if err := json.Unmarshal([]byte(p.Annotations[d.Marker]), &status); err == nil && slices.Contains(status.InitContainers, d.InitContainer) {
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

// families are those in which the sidecar listens: IPv4, and IPv6 as well if that is all the pod has, or with
// ISTIO_DUAL_STACK. The order of the addresses does not count: istio reads them from the interfaces, where the kernel lists
// IPv4 first.
func (istioFamily) families(d Dialect, in Input, out *Decision) ([]rules.Family, error) {
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
func istioLists(d Dialect, a map[string]string, p *redirect.Istio) (err error) {
	outbound, inbound := &p.Outbound, &p.Inbound
	outbound.IncludeRanges, outbound.All = istioInclude(&err, a, istioTraffic+"includeOutboundIPRanges", parseRange)
	outbound.ExcludeRanges = istioList(&err, a, istioTraffic+"excludeOutboundIPRanges", "", parseRange)
	outbound.IncludePorts = istioList(&err, a, istioTraffic+"includeOutboundPorts", "", parsePort)
	outbound.ExcludePorts = istioList(&err, a, istioTraffic+"excludeOutboundPorts", istioMetricsPort, parsePort)
	inbound.IncludePorts, inbound.All = istioInclude(&err, a, istioTraffic+"includeInboundPorts", parsePort)
	inbound.ExcludePorts = istioList(&err, a, istioTraffic+"excludeInboundPorts", istioMetricsPort, parsePort)
	p.ExcludeInterfaces = istioList(&err, a, istioTraffic+"excludeInterfaces", "", parseInterface)
	virtual := istioReroute
	if a[virtual] == "" {
		virtual = istioKubevirt
	}
	p.VirtualInterfaces = istioList(&err, a, virtual, "", parseInterface)
	for _, n := range d.ProxyPorts {
		inbound.ExcludePorts = append(inbound.ExcludePorts, redirect.Port{Number: n, Origin: "istio, as the proxy serves it itself"})
	}
	inbound.ExcludePorts = union(portNumber, inbound.ExcludePorts)
	return err
}

// istioInclude reads a list that is "*" for everything; a pod without the annotation means that, too.
func istioInclude[T comparable](failed *error, annotations map[string]string, name string, parse parser[T]) (entries []T, all bool) {
	if value, ok := annotations[name]; !ok || strings.TrimSpace(value) == "*" {
		return nil, true
	}
	return istioList(failed, annotations, name, "", parse), false
}

// istioList reads a list, which may be blank; absent is the value if it is missing. Like parseList, it keeps the first
// error.
func istioList[T comparable](failed *error, annotations map[string]string, name, absent string, parse parser[T]) []T {
	value, ok := annotations[name]
	if !ok {
		value = absent
	}
	if value = strings.TrimSpace(value); value == "" {
		return nil
	}
	return parseList(failed, name, strings.Split(value, ","), parse)
}

// idOr returns a container's user or group, or the mesh's if the container names none or root.
func idOr(id *int64, otherwise uint32) uint32 {
	if id == nil || *id <= 0 || *id > maxID {
		return otherwise
	}
	return uint32(*id)
}

// readEnv reads a variable as boolEnv does, and warns if its value comes from elsewhere.
func readEnv(c pod.Container, name string, out *Decision) (bool, error) {
	if slices.Contains(c.EnvFrom, name) {
		out.warn("container %q takes %s from elsewhere, which can't be looked up: it counts as not set", c.Name, name)
	}
	return boolEnv(c, name)
}

// boolEnv reads a variable with a literal value; one that is not set is false.
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
