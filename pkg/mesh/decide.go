package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

// Input is what a decision is made of.
type Input struct {
	Pod pod.Pod
	// Config is the JSON of the mesh's configuration object; nil stands for the mesh's defaults.
	Config []byte
	// Addresses are the pod's own, as the CNI plugins ahead gave them; at ADD the pod's status is still empty.
	Addresses []netip.Addr
	// DirectInit applies to a pod without DirectInitAnnotation.
	DirectInit bool
	// Gated applies to a pod without GateAnnotation.
	Gated bool
}

// Decision is what a mesh wants of a pod: its Policy, or nothing, and then Skip says why.
type Decision struct {
	Skip   string
	Policy redirect.Policy
	// Families are those in which the proxy listens; detour leaves the others as they are.
	Families []rules.Family
	// Warnings are what the pod's owner should know although the pod works.
	Warnings []string
}

func (d *Decision) warn(format string, args ...any) {
	d.Warnings = append(d.Warnings, fmt.Sprintf(format, args...))
}

// Decide says what the mesh wants of the pod. For a skipped pod, Decide reads neither lists nor configuration. For any other
// pod, anything malformed or unworkable is an error that names the pod or the configuration object, and the annotation,
// field or container.
func (d Dialect) Decide(in Input) (Decision, error) {
	out, err := d.decide(in)
	if _, ok := errors.AsType[configError](err); ok {
		return Decision{}, err
	}
	if err != nil {
		return Decision{}, fmt.Errorf("pod %s: %w", in.Pod, err)
	}
	return out, nil
}

func (d Dialect) decide(in Input) (out Decision, err error) {
	if out.Skip, err = d.skip(in.Pod); err != nil || out.Skip != "" {
		return out, err
	}
	if revision := d.revisionOf(in.Pod.Annotations, in.Pod.Labels); !IsName(revision) {
		return out, fmt.Errorf("%s: %s is not the name of a revision", d.Revision, quote(revision))
	}
	if err := d.family.decide(d, in, &out); err != nil {
		return out, err
	}
	proxy := out.Policy.Sidecar()
	if err := d.refuseOwner(in.Pod, proxy); err != nil {
		return out, err
	}
	d.warnPorts(in.Pod, proxy, &out)
	return out, out.Policy.Validate()
}

// configError is what is wrong with the mesh's configuration, which is not the pod's fault.
type configError struct {
	object ConfigRef
	err    error
}

func (e configError) Error() string { return e.object.String() + ": " + e.err.Error() }
func (e configError) Unwrap() error { return e.err }

// skip returns the reason for leaving the pod alone, or "".
func (d Dialect) skip(p pod.Pod) (string, error) {
	if _, ok := p.Find(d.Sidecar); !ok {
		return fmt.Sprintf("it has no container %q", d.Sidecar), nil
	}
	if slices.ContainsFunc(p.InitContainers, d.IsInit) {
		return fmt.Sprintf("its init container %q programs the pod itself", d.InitContainer), nil
	}
	return d.family.skip(d, p)
}

// injected reports whether the mesh has injected the container, judging by its name.
func (d Dialect) injected(c pod.Container) bool { return d.Injected(c.Name) }

// refuseOwner refuses a pod with a container that would bypass the mesh: it runs as the proxy's user, or as its group if the
// rules tell the proxy by that. Supplementary groups, fsGroup among them, do no harm: the kernel compares the one group
// that owns what the process creates.
func (d Dialect) refuseOwner(p pod.Pod, proxy redirect.Proxy) error {
	const refusal = "container %q runs as %s %d, which is the proxy's: all its traffic would bypass the mesh; give it another %s"
	for _, c := range p.LongLived() {
		switch {
		case c.Name == d.Sidecar:
		case c.RunAsUser != nil && *c.RunAsUser == int64(proxy.UID):
			return fmt.Errorf(refusal, c.Name, "UID", proxy.UID, "runAsUser")
		case proxy.GID != 0 && c.RunAsGroup != nil && *c.RunAsGroup == int64(proxy.GID):
			return fmt.Errorf(refusal, c.Name, "GID", proxy.GID, "runAsGroup")
		}
	}
	return nil
}

// warnPorts warns of containers that declare a port of the proxy's.
func (d Dialect) warnPorts(p pod.Pod, proxy redirect.Proxy, out *Decision) {
	reserved := d.Reserved(proxy)
	for _, c := range p.LongLived() {
		for _, port := range c.Ports {
			if reserved[port] != "" && !d.injected(c) {
				out.warn("container %q declares port %d, which is the proxy's: only one of them can listen", c.Name, port)
			}
		}
	}
}
