package mesh

import (
	"fmt"
	"strconv"

	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/redirect"
)

// DirectInitAnnotation is an annotation that, if true, leaves alone the connections of init containers that run as a UID of
// their own: they run before the proxy, which could not serve them. It overrides the setting of the pod's namespace.
const DirectInitAnnotation = "detour.io/direct-init-containers"

// GateAnnotation is an annotation that, if true, leaves all outbound connections alone until the proxy sends its first packet
// out of the pod: until then, init containers and the application have a network. It overrides the mesh's setting.
const GateAnnotation = "detour.io/redirect-after-proxy-start"

// options returns what any mesh's policy takes from detour's own annotations: the users whose connections stay direct, and
// whether outbound redirection waits for the proxy.
func (d Dialect) options(in Input, proxy redirect.Proxy, out *Decision) (direct []redirect.User, gated bool, err error) {
	if direct, err = d.directUsers(in, proxy, out); err != nil {
		return nil, false, err
	}
	gated, err = d.gated(in, proxy, out)
	return direct, gated, err
}

// directUsers are the users whose connections stay direct because only init containers run as them.
func (d Dialect) directUsers(in Input, proxy redirect.Proxy, out *Decision) ([]redirect.User, error) {
	direct, err := switchOf(in.Pod, DirectInitAnnotation, in.DirectInit)
	if err != nil || !direct {
		return nil, err
	}
	var users []redirect.User
	for _, c := range in.Pod.InitContainers {
		switch {
		case c.Restarts || d.injected(c):
		case c.RunAsUser == nil || *c.RunAsUser < 0 || *c.RunAsUser > maxID:
			out.warn("init container %q has no runAsUser: its connections can't be told from the application's and go to the proxy, which does not run yet", c.Name)
		case in.Pod.SharesUser(c, d.injected):
			out.warn("init container %q runs as UID %d, and a container of the application does, too, or has no runAsUser: its connections go to the proxy, which does not run yet", c.Name, *c.RunAsUser)
		case *c.RunAsUser != int64(proxy.UID): // the proxy's own user goes direct anyway
			users = append(users, redirect.User{UID: uint32(*c.RunAsUser), Origin: fmt.Sprintf("init container %q", c.Name)})
		}
	}
	return union(func(u redirect.User) uint32 { return u.UID }, users), nil
}

// gated reports whether outbound redirection waits for the proxy's first packet.
func (d Dialect) gated(in Input, proxy redirect.Proxy, out *Decision) (bool, error) {
	gated, err := switchOf(in.Pod, GateAnnotation, in.Gated)
	if err != nil || !gated {
		return false, err
	}
	for _, c := range in.Pod.InitContainers {
		if !d.injected(c) && c.RunAsUser != nil && *c.RunAsUser == int64(proxy.UID) {
			out.warn("init container %q runs as UID %d, which is the proxy's: its first packet counts as the proxy's, and redirection starts with it", c.Name, proxy.UID)
		}
	}
	return true, nil
}

const maxID = 1<<32 - 2 // the kernel reads the highest number as "no ID"

// switchOf reads an annotation that is true or false; absent is the value for a pod without it.
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
