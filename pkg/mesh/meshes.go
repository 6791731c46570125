package mesh

import (
	"net/netip"

	"github.com/detour-cni/detour/pkg/redirect"
)

// dialects are the meshes, one row each.
var dialects = []Dialect{
	{ // Open Service Mesh 0.9 to 0.11: the rules of its published troubleshooting guide
		Name:          "osm",
		Sidecar:       "envoy",
		BareSidecar:   true,
		InitContainer: "osm-init",
		Config:        osmConfig,
		Injection:     "openservicemesh.io/" + sidecarInjection,
		Prefixes:      []string{"openservicemesh.io/"},
		Exclusions:    osmExclusions("openservicemesh.io/"),
		Proxy:         redirect.Proxy{UID: 1500, Inbound: 15003, Outbound: 15001, Admin: 15000},
		ProxyPorts:    osmProxyPorts[:4],
		PortUses:      osmPortUses,
		family:        osmFamily{Chains: guideChains},
	},
	{ // Open Service Mesh 1.1 and 1.2: chains renamed, self-calls, inclusion, interfaces, PodIP mode
		Name:          "osm-v1",
		Sidecar:       "envoy",
		BareSidecar:   true,
		InitContainer: "osm-init",
		Helpers:       []string{"osm-healthcheck"}, // answers TCP probes
		Config:        osmConfig,
		Injection:     "openservicemesh.io/" + sidecarInjection,
		Prefixes:      []string{"openservicemesh.io/"},
		Exclusions:    osmExclusions("openservicemesh.io/"),
		Proxy:         redirect.Proxy{UID: 1500, Inbound: 15003, Outbound: 15001, Admin: 15000},
		ProxyPorts:    osmProxyPorts,
		PortUses:      osmPortUsesLater,
		family: osmFamily{SelfCalls: true, Inclusion: true, Interfaces: true, PodIP: true, Chains: redirect.Chains{
			Inbound:          "OSM_PROXY_INBOUND",
			InboundRedirect:  "OSM_PROXY_IN_REDIRECT",
			Outbound:         "OSM_PROXY_OUTBOUND",
			OutboundRedirect: "OSM_PROXY_OUT_REDIRECT",
		}},
	},
	{ // osm-edge with Pipy: the guide's chains, the later rules, a DNS proxy
		Name:          "osm-edge",
		Sidecar:       "sidecar",
		BareSidecar:   true,
		InitContainer: "osm-init",
		Helpers:       []string{"osm-healthcheck"}, // answers TCP probes
		Config:        osmConfig,
		Injection:     "openservicemesh.io/" + sidecarInjection,
		Prefixes:      []string{"openservicemesh.io/"},
		Exclusions:    osmExclusions("openservicemesh.io/"),
		Proxy:         redirect.Proxy{UID: 1500, Inbound: 15003, Outbound: 15001, Admin: 15000, DNS: 5300},
		ProxyPorts:    osmProxyPorts,
		PortUses:      osmPortUsesLater,
		family:        osmFamily{SelfCalls: true, Inclusion: true, Interfaces: true, PodIP: true, LocalDNS: localDNS, Chains: guideChains},
	},
	{ // FSM, osm-edge's successor: an API group and names of its own
		Name:          "fsm",
		Sidecar:       "sidecar",
		BareSidecar:   true,
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
		Injection:  "flomesh.io/" + sidecarInjection,
		Prefixes:   []string{"flomesh.io/"},
		Exclusions: osmExclusions("flomesh.io/"),
		Proxy:      redirect.Proxy{UID: 1500, Inbound: 15003, Outbound: 15001, Admin: 15000, DNS: 5300},
		ProxyPorts: osmProxyPorts,
		PortUses:   osmPortUsesLater,
		family: osmFamily{SelfCalls: true, Inclusion: true, Interfaces: true, PodIP: true, LocalDNS: localDNS, Chains: redirect.Chains{
			Inbound:          "FSM_PROXY_INBOUND",
			InboundRedirect:  "FSM_PROXY_IN_REDIRECT",
			Outbound:         "FSM_PROXY_OUTBOUND",
			OutboundRedirect: "FSM_PROXY_OUT_REDIRECT",
		}},
	},
	{ // istio in sidecar mode
		Name:          "istio",
		Sidecar:       "istio-proxy",
		InitContainer: "istio-init",
		Helpers:       []string{"istio-validation"},
		Validator:     "istio-validation",
		Config: ConfigRef{
			Versions:  []string{"v1"},
			Resource:  "configmaps",
			Kind:      "ConfigMap",
			Namespace: "istio-system",
			Name:      "istio",
		},
		Revision:  "istio.io/rev", // the annotation since 1.18
		Injection: istioInject,
		Marker:    istioStatus,
		Prefixes:  []string{"istio.io/", "sidecar.istio.io/", istioTraffic},
		Exclusions: Exclusions{
			OutboundPorts:  Setting{Annotation: istioTraffic + "excludeOutboundPorts"},
			InboundPorts:   Setting{Annotation: istioTraffic + "excludeInboundPorts"},
			OutboundRanges: Setting{Annotation: istioTraffic + "excludeOutboundIPRanges"},
		},
		Proxy:      redirect.Proxy{UID: 1337, GID: 1337, Inbound: 15006, Outbound: 15001, Tunnel: 15008, DNS: 15053},
		ProxyPorts: []uint16{15020, 15021, 15090},
		PortUses: map[uint16]string{
			15000: "admin interface", 15004: "debug interface", 15020: "merged telemetry", 15021: "health", 15090: "telemetry",
		},
		family: istioFamily{},
	},
}

var (
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
	osmProxyPorts = []uint16{15010, 15901, 15902, 15903, 15904} // the last in later versions only
	osmPortUses   = map[uint16]string{15010: "metrics", 15901: "liveness probes", 15902: "readiness probes", 15903: "startup probes"}
	// osmPortUsesLater also has the health check that replaces TCP probes.
	osmPortUsesLater = map[uint16]string{
		15010: "metrics", 15901: "liveness probes", 15902: "readiness probes", 15903: "startup probes", 15904: "TCP probes",
	}
	// localDNS is the nameserver that the injector gives a pod whose proxy answers DNS queries. Later versions of FSM give the
	// pod the control plane's, which needs no rule.
	localDNS = netip.MustParseAddr("127.0.0.153")
)
