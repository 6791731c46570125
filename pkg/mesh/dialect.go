// Package mesh knows what each service mesh wants of a pod: which pods it covers, what it reads from their annotations
// and its own configuration, and the redirection that follows. It is pure: objects in, decision out.
package mesh

import (
	"slices"

	"github.com/detour-cni/detour/pkg/redirect"
)

// Dialect is what tells one mesh from another, as data.
type Dialect struct {
	// Name is the net conf's "mesh".
	Name string
	// Sidecar is the container that marks a pod as meshed.
	Sidecar string
	// InitContainer is the container that detour stands in for; a pod that has it programs itself.
	InitContainer string
	// Prefix begins the mesh's annotations, slash included.
	Prefix string
	// Config is where the mesh keeps its configuration.
	Config ConfigRef
	// Chains and Proxy go into the policy as they are.
	Chains redirect.Chains
	Proxy  redirect.Proxy
	// ProxyPorts are inbound ports that the proxy itself serves.
	ProxyPorts []uint16
}

// ConfigRef names the object with the mesh's configuration.
type ConfigRef struct {
	Group     string
	Versions  []string // newest first
	Resource  string
	Kind      string
	Namespace string
	Name      string
}

// String returns "KIND NAMESPACE/NAME".
func (r ConfigRef) String() string { return r.Kind + " " + r.Namespace + "/" + r.Name }

var dialects = []Dialect{
	{ // Open Service Mesh 0.9 to 0.11: the rules of its published troubleshooting guide
		Name:          "osm",
		Sidecar:       "envoy",
		InitContainer: "osm-init",
		Prefix:        "openservicemesh.io/",
		Config: ConfigRef{
			Group:     "config.openservicemesh.io",
			Versions:  []string{"v1alpha2", "v1alpha1"},
			Resource:  "meshconfigs",
			Kind:      "MeshConfig",
			Namespace: "osm-system",
			Name:      "osm-mesh-config",
		},
		Chains: redirect.Chains{
			Inbound:          "PROXY_INBOUND",
			InboundRedirect:  "PROXY_IN_REDIRECT",
			Outbound:         "PROXY_OUTPUT",
			OutboundRedirect: "PROXY_REDIRECT",
		},
		Proxy:      redirect.Proxy{UID: 1500, Inbound: 15003, Outbound: 15001, Admin: 15000},
		ProxyPorts: []uint16{15010, 15901, 15902, 15903}, // Prometheus; liveness, readiness and startup probes
	},
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
