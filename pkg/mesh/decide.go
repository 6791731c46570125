package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

// Input is what a decision is made of.
type Input struct {
	Pod pod.Pod
	// Config is the JSON of the mesh's configuration object; nil stands for its defaults.
	Config []byte
	// Addresses are the pod's own, as the plugins ahead gave them; its status is still empty.
	Addresses []netip.Addr
	// DirectInit leaves connections of the pod's init containers alone, as DirectInitAnnotation does.
	DirectInit bool
	// AfterProxyStart leaves what goes out alone until the proxy sends its first packet out of the pod, as AfterProxyStartAnnotation does.
	AfterProxyStart bool
}

// Decision is what a mesh wants of a pod: its Policy, or nothing, and then Skip says why.
type Decision struct {
	Skip   string
	Policy redirect.Policy
	// Families are those in which the proxy listens: the others stay as they are.
	Families []rules.Family
	// Warnings are what the pod's owner should know although the pod works.
	Warnings []string
}

func (d *Decision) warn(format string, args ...any) {
	d.Warnings = append(d.Warnings, fmt.Sprintf(format, args...))
}

// DirectInitAnnotation is an annotation that, if true, leaves the connections of those init containers alone that run as a UID of their own:
// they run before the proxy, which could not serve them.
const DirectInitAnnotation = "detour.io/direct-init-containers"

// AfterProxyStartAnnotation is an annotation that, if true, leaves all that goes out of the pod alone until the proxy sends
// its first packet out of it: init containers have a network, and so has the application in the meantime. It overrides what is so
// for the whole mesh, either way.
const AfterProxyStartAnnotation = "detour.io/redirect-after-proxy-start"

// switchOf reads an annotation that is true or false, or absent.
func switchOf(p pod.Pod, annotation string, absent bool) (bool, error) {
	value, ok := p.Annotations[annotation]
	if !ok {
		return absent, nil
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("%s: %s is neither true nor false", annotation, quote(value))
	}
	return on, nil
}

// Decide says what the mesh wants of the pod. A skipped pod's lists and the configuration are not looked at; for any
// other pod, whatever is malformed or cannot work is an error that names the pod and the annotation, field or container.
func (d Dialect) Decide(in Input) (Decision, error) {
	skip, err := d.skip(in.Pod)
	if err != nil {
		return Decision{}, fmt.Errorf("pod %s: %w", in.Pod, err)
	}
	if skip != "" {
		return Decision{Skip: skip}, nil
	}
	decide := d.decideOSM
	if d.Istio {
		decide = d.decideIstio
	}
	var out Decision
	if err := decide(in, &out); err != nil {
		return Decision{}, err
	}
	if err := out.Policy.Validate(); err != nil {
		return Decision{}, fmt.Errorf("pod %s: %w", in.Pod, err)
	}
	return out, nil
}

// skip returns the reason for which the pod is left alone, or "".
func (d Dialect) skip(p pod.Pod) (string, error) {
	if _, ok := p.Find(d.Sidecar); !ok {
		return fmt.Sprintf("it has no container %q", d.Sidecar), nil
	}
	// Its name alone would be a way out of the mesh for everybody: only what may program the pod does.
	if c, ok := p.FindInit(d.InitContainer); ok && c.NetAdmin {
		return fmt.Sprintf("its init container %q programs the pod itself", d.InitContainer), nil
	}
	if d.Istio {
		return d.skipIstio(p)
	}
	return d.skipOSM(p)
}

// ours reports whether the mesh has injected the container, as far as its name tells.
func (d Dialect) ours(c pod.Container) bool {
	return c.Name == d.Sidecar || slices.Contains(d.Helpers, c.Name)
}

// refuseOwner reports a container that would bypass the mesh because it runs as the proxy's user, or as its group where
// the mesh tells the proxy by that. Supplementary groups, fsGroup among them, do no harm: the kernel compares the one group
// that a process makes files with.
func (d Dialect) refuseOwner(p pod.Pod, uid, gid uint32) error {
	for _, c := range p.LongLived() {
		switch {
		case c.Name == d.Sidecar:
		case c.RunAsUser != nil && *c.RunAsUser == int64(uid):
			return fmt.Errorf("container %q runs as UID %d, which is the proxy's: all its traffic would bypass the mesh; give it another runAsUser", c.Name, uid)
		case d.Istio && c.RunAsGroup != nil && *c.RunAsGroup == int64(gid):
			return fmt.Errorf("container %q runs as GID %d, which is the proxy's: all its traffic would bypass the mesh; give it another runAsGroup", c.Name, gid)
		}
	}
	return nil
}

// warnPorts warns of containers that declare a port on which the proxy listens.
func (d Dialect) warnPorts(p pod.Pod, reserved []uint16, out *Decision) {
	for _, c := range p.LongLived() {
		for _, port := range c.Ports {
			if !d.ours(c) && slices.Contains(reserved, port) {
				out.warn("container %q declares port %d, which is the proxy's: only one of them can listen", c.Name, port)
			}
		}
	}
}

// directUsers are the users whose connections stay direct because only init containers run as them.
func (d Dialect) directUsers(in Input, proxy uint32, out *Decision) ([]redirect.User, error) {
	direct, err := switchOf(in.Pod, DirectInitAnnotation, in.DirectInit)
	if err != nil || !direct {
		return nil, err
	}
	var users []redirect.User
	for _, c := range in.Pod.InitContainers {
		switch {
		case c.Restarts || d.ours(c):
		case c.RunAsUser == nil || *c.RunAsUser < 0 || *c.RunAsUser > maxUID:
			out.warn("init container %q has no runAsUser: its connections can't be told from the application's and go to the proxy, which does not run yet", c.Name)
		case in.Pod.SharesUser(c, d.ours):
			out.warn("init container %q runs as UID %d, and a container of the application does, too, or has no runAsUser: its connections go to the proxy, which does not run yet", c.Name, *c.RunAsUser)
		case *c.RunAsUser != int64(proxy): // the proxy's own user goes direct anyway
			users = append(users, redirect.User{UID: uint32(*c.RunAsUser), Origin: fmt.Sprintf("init container %q", c.Name)})
		}
	}
	return union(func(u redirect.User) uint32 { return u.UID }, users), nil
}

// afterProxyStart says whether redirection waits for the proxy's first packet.
func (d Dialect) afterProxyStart(in Input, proxy uint32, out *Decision) (bool, error) {
	wait, err := switchOf(in.Pod, AfterProxyStartAnnotation, in.AfterProxyStart)
	if err != nil || !wait {
		return false, err
	}
	for _, c := range in.Pod.InitContainers {
		if !d.ours(c) && c.RunAsUser != nil && *c.RunAsUser == int64(proxy) {
			out.warn("init container %q runs as UID %d, which is the proxy's: its first packet counts as the proxy's, and redirection starts with it", c.Name, proxy)
		}
	}
	return true, nil
}

const maxUID = 1<<32 - 2 // the last one stands for none
