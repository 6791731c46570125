package mesh

import (
	"fmt"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/redirect"
)

// Decision is what a mesh wants of a pod: its Policy, or nothing, and then Skip says why.
type Decision struct {
	Skip   string
	Policy redirect.Policy
	// Warnings are what the pod's owner should know although the pod works.
	Warnings []string
}

// annotations of the OSM family, behind the dialect's prefix.
const (
	sidecarInjection  = "sidecar-injection"
	outboundPorts     = "outbound-port-exclusion-list"
	inboundPorts      = "inbound-port-exclusion-list"
	outboundRanges    = "outbound-ip-range-exclusion-list"
	outboundInclusion = "outbound-ip-range-inclusion-list"
)

// Decide says what the mesh wants of the pod. config is the JSON of the mesh's configuration object; nil stands for its
// defaults. A skipped pod's annotations and the configuration are not looked at; for any other pod, whatever is
// malformed or cannot work is an error that names the pod and the annotation, field or container.
func (d Dialect) Decide(p pod.Pod, config []byte) (Decision, error) {
	skip, err := d.skip(p)
	if err != nil {
		return Decision{}, fmt.Errorf("pod %s: %w", p, err)
	}
	if skip != "" {
		return Decision{Skip: skip}, nil
	}
	if err := d.refuse(p); err != nil {
		return Decision{}, fmt.Errorf("pod %s: %w", p, err)
	}
	var c Config
	if config != nil {
		if c, err = d.ParseConfig(config); err != nil {
			return Decision{}, err
		}
	}
	policy, err := d.policy(p, c)
	if err != nil {
		return Decision{}, fmt.Errorf("pod %s: %w", p, err)
	}
	return Decision{Policy: policy, Warnings: d.warnings(p, c)}, nil
}

// skip returns the reason for which the pod is left alone, or "".
func (d Dialect) skip(p pod.Pod) (string, error) {
	if _, ok := p.Find(d.Sidecar); !ok {
		return fmt.Sprintf("it has no container %q", d.Sidecar), nil
	}
	if _, ok := p.Find(d.InitContainer); ok {
		return fmt.Sprintf("its init container %q programs the pod itself", d.InitContainer), nil
	}
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
	return "", fmt.Errorf("%s: %q is none of enabled, yes, true, disabled, no, false", name, value)
}

// refuse reports a container that would bypass the mesh because it runs as the proxy's user.
func (d Dialect) refuse(p pod.Pod) error {
	for _, c := range p.LongLived() {
		if c.Name != d.Sidecar && c.RunAsUser != nil && *c.RunAsUser == int64(d.Proxy.UID) {
			return fmt.Errorf("container %q runs as UID %d, which is the proxy's: all its traffic would bypass the mesh; give it another runAsUser", c.Name, d.Proxy.UID)
		}
	}
	return nil
}

func (d Dialect) policy(p pod.Pod, c Config) (redirect.Policy, error) {
	ranges, err := annotated(d, p, outboundRanges, parseRange)
	if err != nil {
		return redirect.Policy{}, err
	}
	outbound, err := annotated(d, p, outboundPorts, parsePort)
	if err != nil {
		return redirect.Policy{}, err
	}
	inbound, err := annotated(d, p, inboundPorts, parsePort)
	if err != nil {
		return redirect.Policy{}, err
	}
	policy := redirect.Policy{
		Chains: d.Chains,
		Proxy:  d.Proxy,
		Outbound: redirect.Outbound{ // the injector lists the pod's ranges first and the mesh's ports first
			ExcludeRanges: union(rangePrefix, ranges, c.ExcludeRanges),
			ExcludePorts:  union(portNumber, c.ExcludeOutboundPorts, outbound),
		},
		Inbound: redirect.Inbound{
			ProxyPorts:   d.ProxyPorts,
			ExcludePorts: union(portNumber, c.ExcludeInboundPorts, inbound),
		},
	}
	return policy, policy.Validate()
}

// annotated reads the comma-separated list in one of the pod's annotations; no annotation is an empty list.
func annotated[T any](d Dialect, p pod.Pod, name string, parse func(origin, entry string) (T, error)) ([]T, error) {
	value, ok := p.Annotations[d.Prefix+name]
	if !ok {
		return nil, nil
	}
	return parseList(d.Prefix+name, strings.Split(value, ","), parse)
}

func (d Dialect) warnings(p pod.Pod, c Config) []string {
	var out []string
	warn := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }

	for _, field := range c.Unsupported {
		warn("%s: %s is set, but mesh %s knows no such thing: ignored", d.Config, field, d.Name)
	}
	if _, ok := p.Annotations[d.Prefix+outboundInclusion]; ok {
		warn("%s%s is set, but mesh %s knows no such thing: ignored", d.Prefix, outboundInclusion, d.Name)
	}
	reserved := append([]uint16{d.Proxy.Admin, d.Proxy.Outbound, d.Proxy.Inbound}, d.ProxyPorts...)
	for _, c := range p.LongLived() {
		if c.Name == d.Sidecar {
			if c.RunAsUser != nil && *c.RunAsUser != int64(d.Proxy.UID) {
				warn("container %q runs as UID %d, not %d: its own connections would be redirected to itself", c.Name, *c.RunAsUser, d.Proxy.UID)
			}
			continue
		}
		for _, port := range c.Ports {
			if slices.Contains(reserved, port) {
				warn("container %q declares port %d, which is the proxy's: only one of them can listen", c.Name, port)
			}
		}
	}
	return out
}
