package mesh

import "github.com/detour-cni/detour/pkg/pod"

// IsSidecar reports whether c is the sidecar as the mesh injects it. ADD goes by the name alone.
func (d Dialect) IsSidecar(c pod.Container) bool {
	return c.Name == d.Sidecar && (!d.BareSidecar || c.RunAsUser != nil && *c.RunAsUser == int64(d.Proxy.UID))
}

// IsInit reports whether c, an init container, is the mesh's own, which programs the pod. By its name alone, any init container
// could take its pod out of the mesh: only one that ends and may program the pod counts.
func (d Dialect) IsInit(c pod.Container) bool {
	return c.Name == d.InitContainer && c.NetAdmin && !c.Restarts
}

// IsValidator reports whether c, an init container, is the one that has to end before the sidecar starts.
func (d Dialect) IsValidator(c pod.Container) bool {
	return d.Validator != "" && c.Name == d.Validator && !c.Restarts
}

// LeavesAlone returns why Decide leaves alone a pod that has the sidecar and not the mesh's init container, as what follows "because",
// or "". Decide refuses a pod with a malformed annotation: that is no reason.
func (d Dialect) LeavesAlone(p pod.Pod) string {
	reason, err := d.family.skip(d, p)
	if err != nil {
		return ""
	}
	return reason
}
