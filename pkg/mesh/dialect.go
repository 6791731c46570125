// Package mesh knows what each service mesh wants of a pod: which pods it covers, what it reads from their annotations
// and its own configuration, and the redirection that follows. It is pure: objects in, decision out.
package mesh

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/redirect"
)

// Dialect is what distinguishes one mesh from another, as data.
type Dialect struct {
	// Name is the net conf's "mesh".
	Name string
	// Sidecar is the container that marks a pod as meshed.
	Sidecar string
	// InitContainer is the container that detour replaces; a pod that has it programs itself.
	InitContainer string
	// Helpers are the containers that the mesh injects beside its sidecar.
	Helpers []string
	// Validator is the helper that ends before the sidecar starts: it listens on the proxy's ports, and fails without redirection.
	Validator string
	// BareSidecar says that the injector sets the sidecar's user, and little else of its securityContext. The sidecar's name is a common
	// word, so admission goes by the user, too.
	BareSidecar bool
	// Config is the object with the mesh's configuration; zero if the mesh has none.
	Config ConfigRef
	// Revision is the annotation, or else label, that names the revision of the control plane whose configuration a pod has;
	// empty if all pods have Config.
	Revision string
	// Injection is the annotation, or label, by which a pod asks for the sidecar or declines it.
	Injection string
	// Marker is the annotation that the mesh writes into the pods that it injects; empty if it has none.
	Marker string
	// Prefixes begin the names of the annotations and labels that the mesh reads, slash included.
	Prefixes []string
	// Exclusions are what a user sets to keep traffic away from the proxy.
	Exclusions Exclusions
	// Proxy is the sidecar as the mesh runs it by default. A mesh that also identifies its proxy by its group has a GID here.
	Proxy redirect.Proxy
	// ProxyPorts are inbound ports that the proxy itself serves, such as metrics and probes.
	ProxyPorts []uint16
	// PortUses says what the proxy uses ports for that are not listeners of Proxy. Applications must leave them alone.
	PortUses map[uint16]string

	family family
}

// family is what meshes that are configured alike, and lay out their rules alike, have in common. Its value holds the data
// that no other family has.
type family interface {
	// skip returns the reason for leaving alone a pod that has the sidecar, or "".
	skip(Dialect, pod.Pod) (string, error)
	// decide fills in the policy and the families of addresses, and warns.
	decide(Dialect, Input, *Decision) error
	// broadest returns a policy with everything that the mesh may program without a pod asking for it by name.
	broadest(Dialect) redirect.Policy
}

// Find returns the dialect called name.
func Find(name string) (Dialect, bool) {
	i := slices.IndexFunc(dialects, func(d Dialect) bool { return d.Name == name })
	if i < 0 {
		return Dialect{}, false
	}
	return dialects[i], true
}

// Names lists the dialects' names.
func Names() []string {
	var names []string
	for _, d := range dialects {
		names = append(names, d.Name)
	}
	return names
}

// Broadest returns a policy with everything that the mesh may program without a pod asking for it by name: the rules to look
// for in a namespace about which nothing else is known.
func (d Dialect) Broadest() redirect.Policy { return d.family.broadest(d) }

// Reserved returns the ports that belong to the proxy, and what it uses each for. A container of the application that listens on one
// breaks the proxy, or itself.
func (d Dialect) Reserved(proxy redirect.Proxy) map[uint16]string {
	reserved := maps.Clone(d.PortUses)
	for port, use := range map[uint16]string{
		proxy.Outbound: "outbound listener", proxy.Inbound: "inbound listener", proxy.Admin: "admin interface", proxy.Tunnel: "tunnel",
	} {
		if port != 0 {
			reserved[port] = use
		}
	}
	return reserved
}

// Injected reports whether the mesh has injected the container of this name: its sidecar, or a helper.
func (d Dialect) Injected(name string) bool {
	return name == d.Sidecar || slices.Contains(d.Helpers, name)
}

// Reads reports whether Decide may look at an annotation or a label of this name.
func (d Dialect) Reads(name string) bool {
	begins := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
	return begins("detour.io/") || slices.ContainsFunc(d.Prefixes, begins)
}

// ConfigRef names the object with a mesh's configuration. A mesh that has none has the zero ConfigRef.
type ConfigRef struct {
	Group     string   `json:"group"`
	Versions  []string `json:"versions"` // newest first
	Resource  string   `json:"resource"`
	Kind      string   `json:"kind"`
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
}

// IsZero reports whether the mesh has no object with its configuration.
func (r ConfigRef) IsZero() bool { return r.Resource == "" }

// String returns "KIND NAMESPACE/NAME".
func (r ConfigRef) String() string {
	if r.IsZero() {
		return "no configuration object"
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// ConfigFor returns the object with the mesh's configuration for a pod with these annotations and labels. If the net conf
// names the object, all pods have that one. A revision that can't be part of a name never becomes one: ConfigFor returns
// Config, and Decide refuses the pod.
func (d Dialect) ConfigFor(annotations, labels map[string]string) ConfigRef {
	row, _ := Find(d.Name)
	revision := d.revisionOf(annotations, labels)
	ref := d.Config
	ref.Name += "-" + revision
	if revision == defaultRevision || d.Config.Name != row.Config.Name || !IsName(ref.Name) {
		return d.Config
	}
	return ref
}

const defaultRevision = "default"

// revisionOf prefers the annotation: the injector writes it. The label is what the pod's owner asked for, and may be a tag,
// which stands for a revision.
func (d Dialect) revisionOf(annotations, labels map[string]string) string {
	return cmp.Or(annotations[d.Revision], labels[d.Revision], defaultRevision)
}

// IsName reports whether s can be a Kubernetes object's name (RFC 1123 subdomain), and so be part of a URL's path.
func IsName(s string) bool {
	const inner = "abcdefghijklmnopqrstuvwxyz0123456789-."
	return s != "" && len(s) <= 253 && strings.Trim(s, inner) == "" && !slices.ContainsFunc([]string{"-", "."}, func(c string) bool {
		return strings.HasPrefix(s, c) || strings.HasSuffix(s, c)
	})
}
