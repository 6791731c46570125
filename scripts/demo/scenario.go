package main

import (
	"fmt"
	"net/netip"
	"strings"
)

// scenario is what the demo sets up for a mesh and what it wants to see.
type scenario struct {
	Mesh string
	// Meshed is the pod with the sidecar, Plain the one without. Both stand in the manifests.
	Meshed, Plain podID
	Sections      []section
}

// podID names a pod as the runtime does.
type podID struct{ Namespace, Name, UID string }

func (p podID) String() string { return p.Namespace + "/" + p.Name }

// section is a heading of the table and the connections below it.
type section struct {
	Title string
	Rows  []row
}

// row is a connection that is made over IPv4 and over IPv6.
type row struct {
	Name string
	From caller
	To   host
	Port uint16
	Want way
}

// caller is who connects.
type caller string

const (
	application caller = "the application" // in the meshed pod
	sidecar     caller = "the proxy"       // in the meshed pod, as the proxy's user
	outsider    caller = "outside"
	plainApp    caller = "the pod without a sidecar"
)

// host is who is connected to.
type host string

const (
	server      host = "server"      // outside, like those below up to partner
	meshRange   host = "meshRange"   // in a range that the MeshConfig excludes
	podRange    host = "podRange"    // in a range that the pod's annotation excludes
	besideRange host = "besideRange" // the first addresses behind podRange
	localhost   host = "localhost"
	webPod      host = "webPod"   // the meshed pod
	batchPod    host = "batchPod" // the pod without a sidecar
)

// dual is a pair of addresses: IPv4, IPv6.
type dual [2]netip.Addr

func addresses(v4, v6 string) dual { return dual{netip.MustParseAddr(v4), netip.MustParseAddr(v6)} }

// outsideHosts are all in the namespace outside; documentation's addresses, so that no one else's are meant.
var outsideHosts = map[host]dual{
	server:      addresses("203.0.113.10", "2001:db8:1::10"),
	meshRange:   addresses("198.51.100.7", "2001:db8:100::7"),
	podRange:    addresses("192.0.2.7", "2001:db8:200::7"),
	besideRange: addresses("192.0.2.16", "2001:db8:200:1::7"),
}

var loopback = addresses("127.0.0.1", "::1")

// The proxy's listeners, the same in every mesh of the OSM family.
const (
	outboundPort = 15001
	inboundPort  = 15003
)

// Who answers a connection.
const (
	atOutside = "outside"
	atApp     = "app"
	atProxy   = "proxy" // the proxy's own ports: metrics and probes
)

// way is how a connection goes: through one of the proxy's listeners, or none, to who answers.
type way struct {
	Via uint16 // 0 for none
	At  string
}

func (w way) String() string {
	if w.Via == 0 {
		return "direct -> " + w.At
	}
	return fmt.Sprintf("%d -> %s", w.Via, w.At)
}

// answer is the line that a client reads who dialed dst and whose connection goes this way.
func (w way) answer(dst netip.AddrPort) string {
	switch w.Via {
	case 0:
		return fmt.Sprintf("%s %s", w.At, dst)
	case inboundPort:
		return relayed(fmt.Sprintf("%s %s", w.At, inPod(dst)), w.Via, dst)
	}
	return relayed(fmt.Sprintf("%s %s", w.At, dst), w.Via, dst)
}

// relayed is an answer with what the proxy adds to it.
func relayed(answer string, via uint16, original netip.AddrPort) string {
	return fmt.Sprintf("%s via proxy %d (original %s)", answer, via, original)
}

// inPod is where the proxy finds the application that an inbound connection was meant for.
func inPod(original netip.AddrPort) netip.AddrPort {
	if original.Addr().Is4() {
		return netip.AddrPortFrom(loopback[0], original.Port())
	}
	return netip.AddrPortFrom(loopback[1], original.Port())
}

// ways are all that there are.
var ways = []way{
	{0, atOutside}, {outboundPort, atOutside},
	{0, atApp}, {outboundPort, atApp}, {inboundPort, atApp},
	{0, atProxy}, {outboundPort, atProxy}, {inboundPort, atProxy},
}

// scenarios are the meshes that the demo knows. What is wanted is written down here and not asked of the code that makes
// the rules.
var scenarios = []scenario{
	{
		Mesh:   "osm",
		Meshed: podID{"shop", "web", "0d6c1a52-8c0e-4f0b-9a57-3f1f5c7f2a01"},
		Plain:  podID{"shop", "batch", "0d6c1a52-8c0e-4f0b-9a57-3f1f5c7f2a02"},
		Sections: []section{
			{"From the application in pod shop/web (UID 1000)", []row{
				{"a server outside", application, server, 80, way{outboundPort, atOutside}},
				{"range excluded for the mesh", application, meshRange, 80, way{0, atOutside}},
				{"range excluded for the pod", application, podRange, 80, way{0, atOutside}},
				{"address beside that range", application, besideRange, 80, way{outboundPort, atOutside}},
				{"port excluded for the mesh", application, server, 6379, way{0, atOutside}},
				{"port excluded for the pod", application, server, 5432, way{0, atOutside}},
				{"localhost", application, localhost, 8080, way{0, atApp}},
				{"the pod's own address", application, webPod, 8080, way{outboundPort, atApp}},
			}},
			{"From the proxy in pod shop/web (UID 1500)", []row{
				{"a server outside", sidecar, server, 80, way{0, atOutside}},
				{"the application", sidecar, localhost, 8080, way{0, atApp}},
			}},
			{"From outside to pod shop/web", []row{
				{"the application", outsider, webPod, 8080, way{inboundPort, atApp}},
				{"the proxy's metrics", outsider, webPod, 15010, way{0, atProxy}},
				{"the proxy's liveness probe", outsider, webPod, 15901, way{0, atProxy}},
				{"the proxy's readiness probe", outsider, webPod, 15902, way{0, atProxy}},
				{"the proxy's startup probe", outsider, webPod, 15903, way{0, atProxy}},
				// osm is the one mesh of its family whose rules do not let this port pass.
				{"the proxy's health check", outsider, webPod, 15904, way{inboundPort, atProxy}},
				{"port excluded for the mesh", outsider, webPod, 9100, way{0, atApp}},
				{"port excluded for the pod", outsider, webPod, 7946, way{0, atApp}},
			}},
			{"Pod shop/batch, which has no sidecar", []row{
				{"a server outside", plainApp, server, 80, way{0, atOutside}},
				{"its application, from outside", outsider, batchPod, 8080, way{0, atApp}},
			}},
		},
	},
}

func findScenario(mesh string) (scenario, error) {
	var names []string
	for _, s := range scenarios {
		if s.Mesh == mesh {
			return s, nil
		}
		names = append(names, s.Mesh)
	}
	return scenario{}, fmt.Errorf("mesh %q: the demo knows %s", mesh, strings.Join(names, ", "))
}

// rows are those of all sections.
func (s scenario) rows() []row {
	var all []row
	for _, section := range s.Sections {
		all = append(all, section.Rows...)
	}
	return all
}
