package main

import (
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/redirect"
)

// The pods of the manifests.
var (
	web       = podSpec{webPod, podID{"shop", "web", "0d6c1a52-8c0e-4f0b-9a57-3f1f5c7f2a01"}, redirected}
	webTPROXY = podSpec{tproxyPod, podID{"shop", "web-tproxy", "0d6c1a52-8c0e-4f0b-9a57-3f1f5c7f2a03"}, transparent}
	batch     = podSpec{batchPod, podID{"shop", "batch", "0d6c1a52-8c0e-4f0b-9a57-3f1f5c7f2a02"}, noSidecar}
)

// What the proxies of the meshes have in common with the rules.
var (
	osmProxy  = proxySpec{UID: 1500, Outbound: 15001, Inbound: 15003}
	edgeProxy = proxySpec{UID: 1500, Outbound: 15001, Inbound: 15003, DNS: []netip.AddrPort{
		netip.MustParseAddrPort("127.0.0.153:5300"),
	}}
	istioProxy = proxySpec{UID: 1337, Outbound: 15001, Inbound: 15006, DNS: []netip.AddrPort{
		netip.MustParseAddrPort("127.0.0.1:15053"), netip.MustParseAddrPort("[::1]:15053"),
	}}
)

// guideChains are those of the published troubleshooting guides.
var guideChains = redirect.Chains{Inbound: "PROXY_INBOUND", InboundRedirect: "PROXY_IN_REDIRECT", Outbound: "PROXY_OUTPUT", OutboundRedirect: "PROXY_REDIRECT"}

// laterChains are those of the OSM family's later members.
func laterChains(prefix string) redirect.Chains {
	return redirect.Chains{
		Inbound: prefix + "PROXY_INBOUND", InboundRedirect: prefix + "PROXY_IN_REDIRECT",
		Outbound: prefix + "PROXY_OUTBOUND", OutboundRedirect: prefix + "PROXY_OUT_REDIRECT",
	}
}

// scenarios are the meshes, put together from the rows below. What is wanted is written down here and not asked of the
// code that makes the rules.
var scenarios = []scenario{
	{
		Mesh: "osm", Proxy: osmProxy, Chains: guideChains, Pods: []podSpec{web, batch},
		Sections: []section{
			{"From the application in pod shop/web (UID 1000)", "",
				slices.Concat(outwards, outwardsOfMesh, within, selfCall(application, way{outbound, atApp}))},
			{"From the proxy in pod shop/web (UID 1500)", "", ofProxy},
			// osm is the one mesh of its family whose rules do not let the health check's port pass.
			{"From outside to pod shop/web", inboundNote, slices.Concat(inwards, osmPorts, healthCheck(way{inbound, atProxy}), inwardsOfMesh)},
			ofBatch,
		},
	},
	{
		Mesh: "osm-v1", Proxy: osmProxy, Chains: laterChains("OSM_"), Pods: []podSpec{web, batch},
		Sections: []section{
			{"From the application in pod shop/web (UID 1000)", "", slices.Concat(outwards, outwardsOfMesh, within, ownAddress)},
			laterProxy,
			laterInwards,
			ofBatch,
		},
	},
	{
		Mesh: "osm-edge", Proxy: edgeProxy, Chains: guideChains, Pods: []podSpec{web, batch},
		Sections: []section{
			{"From the application in pod shop/web (UID 1000)", "", slices.Concat(outwards, outwardsOfMesh, within, ownAddress, []row{
				{"DNS at 127.0.0.153 by UDP", application, localDNS, udp(53), way{dnsAnswers, atProxy}},
			})},
			laterProxy,
			laterInwards,
			ofBatch,
		},
	},
	{
		Mesh: "fsm", Proxy: osmProxy, Chains: laterChains("FSM_"), Pods: []podSpec{web, batch},
		Sections: []section{
			{"From the application in pod shop/web (UID 1000), whose annotation includes few ranges", "", slices.Concat(outwards, []row{
				{"range that is not included", application, elsewhere, tcp(80), way{direct, atOutside}},
			}, outwardsOfMesh, within, ownAddress)},
			laterProxy,
			laterInwards,
			ofBatch,
		},
	},
	{
		Mesh: "istio", Proxy: istioProxy, Pods: []podSpec{web, webTPROXY, batch},
		Chains:    redirect.Chains{Inbound: "ISTIO_INBOUND", InboundRedirect: "ISTIO_IN_REDIRECT", Outbound: "ISTIO_OUTPUT", OutboundRedirect: "ISTIO_REDIRECT"},
		DNSChains: []string{"ISTIO_OUTPUT", "ISTIO_OUTPUT_DNS"},
		Sections: []section{
			{"From the application in pod shop/web (UID 1000)", "", slices.Concat(outwards, within, ownAddress, []row{
				{"DNS by UDP", application, dnsServer, udp(53), way{dnsAnswers, atProxy}},
				{"DNS by TCP", application, dnsServer, tcp(53), way{dnsAnswers, atProxy}},
			})},
			{"From the proxy in pod shop/web (UID 1337)", "", slices.Concat(ofProxy, selfCall(sidecar, way{inbound, atApp}), []row{
				{"DNS by UDP", sidecar, dnsServer, udp(53), way{direct, atOutside}},
				{"DNS by TCP", sidecar, dnsServer, tcp(53), way{direct, atOutside}},
			})},
			{"From outside to pod shop/web", inboundNote, slices.Concat(inwards, istioPorts(webPod), []row{
				{"the proxy's tunnel", outsider, webPod, tcp(15008), way{direct, atProxy}},
			})},
			{"From outside to pod shop/web-tproxy", "TPROXY: it is the client itself that the application sees.", slices.Concat([]row{
				{"the application", outsider, tproxyPod, tcp(8080), way{inboundAs, atApp}},
				{"port excluded for the pod", outsider, tproxyPod, tcp(7946), way{direct, atApp}},
			}, istioPorts(tproxyPod))},
			{"From pod shop/web-tproxy (application: UID 1000; proxy: UID 0, GID 1337)", "", []row{
				{"application to a server", tproxyApp, server, tcp(80), way{outbound, atOutside}},
				{"application to localhost", tproxyApp, localhost, tcp(8080), way{direct, atApp}},
				{"application to own address", tproxyApp, tproxyPod, tcp(8080), way{direct, atApp}},
				{"proxy to a server", tproxySidecar, server, tcp(80), way{direct, atOutside}},
				{"proxy to the application", tproxySidecar, localhost, tcp(8080), way{direct, atApp}},
				{"proxy to own address", tproxySidecar, tproxyPod, tcp(8080), way{inboundAs, atApp}},
			}},
			ofBatch,
		},
	},
}

const inboundNote = "It is the pod's own proxy that the application sees."

// What meshes have in common.
var (
	outwards = []row{
		{"a server outside", application, server, tcp(80), way{outbound, atOutside}},
		{"range excluded for the pod", application, podRange, tcp(80), way{direct, atOutside}},
		{"address beside that range", application, besideRange, tcp(80), way{outbound, atOutside}},
		{"port excluded for the pod", application, server, tcp(5432), way{direct, atOutside}},
	}
	outwardsOfMesh = []row{
		{"range excluded for the mesh", application, meshRange, tcp(80), way{direct, atOutside}},
		{"port excluded for the mesh", application, server, tcp(6379), way{direct, atOutside}},
	}
	within = []row{
		{"localhost", application, localhost, tcp(8080), way{direct, atApp}},
	}
	ownAddress = selfCall(application, way{direct, atApp})
	ofProxy    = []row{
		{"a server outside", sidecar, server, tcp(80), way{direct, atOutside}},
		{"the application", sidecar, localhost, tcp(8080), way{direct, atApp}},
	}
	inwards = []row{
		{"the application", outsider, webPod, tcp(8080), way{inbound, atApp}},
		{"port excluded for the pod", outsider, webPod, tcp(7946), way{direct, atApp}},
	}
	inwardsOfMesh = []row{
		{"port excluded for the mesh", outsider, webPod, tcp(9100), way{direct, atApp}},
	}
	osmPorts = []row{
		{"the proxy's metrics", outsider, webPod, tcp(15010), way{direct, atProxy}},
		{"the proxy's liveness probe", outsider, webPod, tcp(15901), way{direct, atProxy}},
		{"the proxy's readiness probe", outsider, webPod, tcp(15902), way{direct, atProxy}},
		{"the proxy's startup probe", outsider, webPod, tcp(15903), way{direct, atProxy}},
	}
	laterProxy   = section{"From the proxy in pod shop/web (UID 1500)", "", slices.Concat(ofProxy, selfCall(sidecar, way{inbound, atApp}))}
	laterInwards = section{"From outside to pod shop/web", inboundNote,
		slices.Concat(inwards, osmPorts, healthCheck(way{direct, atProxy}), inwardsOfMesh)}
	ofBatch = section{"Pod shop/batch, which has no sidecar", "", []row{
		{"a server outside", plainApp, server, tcp(80), way{direct, atOutside}},
		{"its application, from outside", outsider, batchPod, tcp(8080), way{direct, atApp}},
	}}
)

func selfCall(from caller, want way) []row {
	return []row{{"the pod's own address", from, webPod, tcp(8080), want}}
}

func healthCheck(want way) []row {
	return []row{{"the proxy's health check", outsider, webPod, tcp(15904), want}}
}

func istioPorts(to host) []row {
	return []row{
		{"telemetry of both", outsider, to, tcp(15020), way{direct, atProxy}},
		{"the proxy's health check", outsider, to, tcp(15021), way{direct, atProxy}},
		{"the proxy's own telemetry", outsider, to, tcp(15090), way{direct, atProxy}},
	}
}
