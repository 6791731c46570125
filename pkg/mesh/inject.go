package mesh

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/pod"
)

// Inject returns the pod as the mesh injects it, less the init container, as far as Decide reads it; a pod that has the sidecar stays as
// it is. What only the control plane knows, such as the sidecar's variables, is missing. certain reports whether the pod has the sidecar
// or asks for it; otherwise its namespace decides.
func (d Dialect) Inject(p pod.Pod) (injected pod.Pod, certain bool) {
	if _, ok := p.Find(d.Sidecar); ok {
		return p, true
	}
	sidecar := pod.Container{Name: d.Sidecar, RunAsUser: id(d.Proxy.UID), RunAsGroup: id(d.Proxy.GID)}
	p.Containers = append(slices.Clip(p.Containers), sidecar)
	if d.Marker != "" {
		marked := map[string]string{d.Marker: "{}"}
		maps.Copy(marked, p.Annotations)
		p.Annotations = marked
	}
	return p, d.asked(p)
}

func id(number uint32) *int64 {
	if number == 0 {
		return nil
	}
	n := int64(number)
	return &n
}

// asked reports whether the pod asks for the sidecar.
func (d Dialect) asked(p pod.Pod) bool {
	switch strings.ToLower(cmp.Or(p.Labels[d.Injection], p.Annotations[d.Injection])) {
	case "enabled", "yes", "true":
		return true
	}
	return false
}

// Bare returns an injected pod that asks for nothing itself and that every field of the configuration concerns.
func (d Dialect) Bare(config ConfigRef) pod.Pod {
	p, _ := d.Inject(pod.Pod{Namespace: "any", Name: "any", Containers: []pod.Container{{Name: "app"}}, Nameservers: []string{localDNS.String()}})
	if revision, ok := strings.CutPrefix(config.Name, d.Config.Name+"-"); ok && d.Revision != "" {
		p.Labels = map[string]string{d.Revision: revision}
	}
	return p
}

// ConfigNamed returns the mesh's configuration of this name, be it a revision's, if an object of this name can be one.
func (d Dialect) ConfigNamed(namespace, name string) (ConfigRef, bool) {
	ref := d.Config
	ref.Name = name
	p := d.Bare(ref)
	return ref, namespace == d.Config.Namespace && d.ConfigFor(p.Annotations, p.Labels).Name == name
}
