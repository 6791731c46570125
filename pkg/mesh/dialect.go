// Package mesh knows what each service mesh wants of a pod: which pods it covers, what it reads from their annotations
// and its own configuration, and the redirection that follows. It is pure: objects in, decision out.
package mesh

import (
	"cmp"
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
	// Helpers are what the mesh injects beside its sidecar: none of them is the application's.
	Helpers []string
	// Config is where the mesh keeps its configuration.
	Config ConfigRef
	// Ports are the proxy's listeners, UID and GID the user and group that it runs as.
	Ports    Ports
	UID, GID uint32

	// The OSM family: what follows has no meaning for istio, whose row has Istio set.
	Istio bool
	// Prefix begins the mesh's annotations, slash included.
	Prefix string
	Chains redirect.Chains
	// ProxyPorts are inbound ports that the proxy itself serves.
	ProxyPorts []uint16
	Features   Features
}

// Ports are the proxy's listeners.
type Ports struct{ Inbound, Outbound, Admin, Tunnel, DNS uint16 }

// Features are what later members of the OSM family have and the first has not.
type Features struct {
	SelfCalls  bool // the proxy may call the pod's own service through itself
	Inclusion  bool // outbound IP range inclusion lists
	Interfaces bool // networkInterfaceExclusionList
	PodIP      bool // localProxyMode: PodIP
	LocalDNS   bool // localDNSProxy, for pods that the injector gave the proxy as their nameserver
}

// ConfigRef names the object with the mesh's configuration.
type ConfigRef struct {
	Group     string   `json:"group"`
	Versions  []string `json:"versions"` // newest first
	Resource  string   `json:"resource"`
	Kind      string   `json:"kind"`
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
}

// String returns "KIND NAMESPACE/NAME".
func (r ConfigRef) String() string { return r.Kind + " " + r.Namespace + "/" + r.Name }

var (
	osmPorts  = Ports{Inbound: 15003, Outbound: 15001, Admin: 15000}
	osmConfig = ConfigRef{
		Group:     "config.openservicemesh.io",
		Versions:  []string{"v1alpha2", "v1alpha1"},
		Resource:  "meshconfigs",
		Kind:      "MeshConfig",
		Namespace: "osm-system",
		Name:      "osm-mesh-config",
	}
	// guideChains are the names in the published troubleshooting guides.
	guideChains = redirect.Chains{
		Inbound:          "PROXY_INBOUND",
		InboundRedirect:  "PROXY_IN_REDIRECT",
		Outbound:         "PROXY_OUTPUT",
		OutboundRedirect: "PROXY_REDIRECT",
	}
	guideProxyPorts = []uint16{15010, 15901, 15902, 15903}        // Prometheus; liveness, readiness and startup probes
	laterProxyPorts = []uint16{15010, 15901, 15902, 15903, 15904} // and the health check that stands in for TCP probes
)

var dialects = []Dialect{
	{ // Open Service Mesh 0.9 to 0.11: the rules of its published troubleshooting guide
		Name:          "osm",
		Sidecar:       "envoy",
		InitContainer: "osm-init",
		Config:        osmConfig,
		Ports:         osmPorts,
		UID:           1500,
		Prefix:        "openservicemesh.io/",
		Chains:        guideChains,
		ProxyPorts:    guideProxyPorts,
	},
	{ // Open Service Mesh 1.1 and 1.2: chains renamed, self-calls, inclusion, interfaces, PodIP mode
		Name:          "osm-v1",
		Sidecar:       "envoy",
		InitContainer: "osm-init",
		Helpers:       []string{"osm-healthcheck"}, // answers TCP probes
		Config:        osmConfig,
		Ports:         osmPorts,
		UID:           1500,
		Prefix:        "openservicemesh.io/",
		Chains: redirect.Chains{
			Inbound:          "OSM_PROXY_INBOUND",
			InboundRedirect:  "OSM_PROXY_IN_REDIRECT",
			Outbound:         "OSM_PROXY_OUTBOUND",
			OutboundRedirect: "OSM_PROXY_OUT_REDIRECT",
		},
		ProxyPorts: laterProxyPorts,
		Features:   Features{SelfCalls: true, Inclusion: true, Interfaces: true, PodIP: true},
	},
	{ // osm-edge with Pipy: the guide's chains, the later rules, a DNS proxy
		Name:          "osm-edge",
		Sidecar:       "sidecar",
		InitContainer: "osm-init",
		Helpers:       []string{"osm-healthcheck"}, // answers TCP probes
		Config:        osmConfig,
		Ports:         osmPorts,
		UID:           1500,
		Prefix:        "openservicemesh.io/",
		Chains:        guideChains,
		ProxyPorts:    laterProxyPorts,
		Features:      Features{SelfCalls: true, Inclusion: true, Interfaces: true, PodIP: true, LocalDNS: true},
	},
	{ // FSM, osm-edge's successor: an API group and names of its own
		Name:          "fsm",
		Sidecar:       "sidecar",
		InitContainer: "fsm-init",
		Helpers:       []string{"fsm-healthcheck"}, // answers TCP probes
		Config: ConfigRef{
			Group:     "config.flomesh.io",
			Versions:  []string{"v1alpha3", "v1alpha2", "v1alpha1"},
			Resource:  "meshconfigs",
			Kind:      "MeshConfig",
			Namespace: "fsm-system",
			Name:      "fsm-mesh-config",
		},
		Ports:  osmPorts,
		UID:    1500,
		Prefix: "flomesh.io/",
		Chains: redirect.Chains{
			Inbound:          "FSM_PROXY_INBOUND",
			InboundRedirect:  "FSM_PROXY_IN_REDIRECT",
			Outbound:         "FSM_PROXY_OUTBOUND",
			OutboundRedirect: "FSM_PROXY_OUT_REDIRECT",
		},
		ProxyPorts: laterProxyPorts,
		Features:   Features{SelfCalls: true, Inclusion: true, Interfaces: true, PodIP: true, LocalDNS: true},
	},
	{ // istio in sidecar mode
		Name:          "istio",
		Sidecar:       "istio-proxy",
		InitContainer: "istio-init",
		Helpers:       []string{"istio-validation"}, // fails without redirection
		Config: ConfigRef{
			Versions:  []string{"v1"},
			Resource:  "configmaps",
			Kind:      "ConfigMap",
			Namespace: "istio-system",
			Name:      "istio",
		},
		Ports: Ports{Inbound: 15006, Outbound: 15001, Tunnel: 15008, DNS: 15053},
		UID:   1337,
		GID:   1337,
		Istio: true,
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

// istioRevision is the annotation with which istio's injector, from 1.18 on, says which revision of the control plane
// it belongs to, and the label by which a pod asks for one. The label may be a tag, which stands for a revision; the
// annotation never is.
const istioRevision = "istio.io/rev"

// ConfigFor returns the object with the mesh's configuration for a pod with these annotations and labels. Each revision of
// istio's control plane has an object of its own. A name that the net conf gives holds for all pods. A revision that can't
// be part of a name never becomes one: the row's object is returned, and Decide refuses the pod.
func (d Dialect) ConfigFor(annotations, labels map[string]string) ConfigRef {
	row, _ := Find(d.Name)
	revision := revisionOf(annotations, labels)
	ref := d.Config
	ref.Name += "-" + revision
	if !d.Istio || d.Config.Name != row.Config.Name || revision == "default" || !IsName(ref.Name) {
		return d.Config
	}
	return ref
}

func revisionOf(annotations, labels map[string]string) string {
	return cmp.Or(annotations[istioRevision], labels[istioRevision], "default")
}

// Names lists the dialects' names.
func Names() []string {
	var names []string
	for _, d := range dialects {
		names = append(names, d.Name)
	}
	return names
}
