package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
)

// scenario is what the demo sets up for a mesh and what it wants to see.
type scenario struct {
	Mesh  string
	Proxy proxySpec
	// Chains are those of the mesh, and DNSChains those that a DNS query passes, for the picture.
	Chains    redirect.Chains
	DNSChains []string
	Pods      []podSpec
	Sections  []section
}

// proxySpec is what the proxy and the rules have to agree on.
type proxySpec struct {
	UID               uint32 // and GID, but see user
	Outbound, Inbound uint16
	// DNS is where the proxy answers queries, at most once for each family.
	DNS []netip.AddrPort
}

// podSpec is a pod of the manifests.
type podSpec struct {
	Host    host
	ID      podID
	Sidecar sidecarKind
}

type sidecarKind int

const (
	noSidecar sidecarKind = iota
	redirected
	// transparent is a sidecar that connects to the application with its client's address.
	transparent
)

// user is the user that a pod's proxy runs as. A transparent one needs CAP_NET_ADMIN; istio runs it as root for that.
func (p proxySpec) user(of sidecarKind) (uid, gid uint32) {
	if of == transparent {
		return 0, p.UID
	}
	return p.UID, p.UID
}

// podID names a pod as the runtime does.
type podID struct{ Namespace, Name, UID string }

func (p podID) String() string { return p.Namespace + "/" + p.Name }

// section is a heading of the table and the connections below it.
type section struct {
	Title string
	// Note, if there is one, introduces the first answer in full.
	Note string
	Rows []row
}

// row is a connection that is made over IPv4 and over IPv6, as far as its host has addresses of both.
type row struct {
	Name    string
	From    caller
	To      host
	Service service
	Want    way
}

// service is where a host is connected to.
type service struct {
	Protocol nettest.Protocol
	Port     uint16
}

func tcp(port uint16) service { return service{nettest.TCP, port} }
func udp(port uint16) service { return service{nettest.UDP, port} }

// caller is where a connection begins.
type caller struct {
	Name string
	At   host
	As   sidecarKind // noSidecar for an application
}

var (
	application   = caller{"the application", webPod, noSidecar}
	sidecar       = caller{"the proxy", webPod, redirected}
	tproxyApp     = caller{"the application of web-tproxy", tproxyPod, noSidecar}
	tproxySidecar = caller{"the proxy of web-tproxy", tproxyPod, transparent}
	outsider      = caller{"outside", outside, noSidecar}
	plainApp      = caller{"the pod without a sidecar", batchPod, noSidecar}
)

// host is where a connection ends.
type host string

const (
	outside     host = "outside"     // as the pods' gateway; the hosts down to dnsServer are all in its namespace
	server      host = "server"      // a server like any other
	elsewhere   host = "elsewhere"   // in no range that a pod's annotation includes
	meshRange   host = "meshRange"   // in a range that the MeshConfig excludes
	podRange    host = "podRange"    // in a range that the pod's annotation excludes
	besideRange host = "besideRange" // the first addresses behind podRange
	dnsServer   host = "dnsServer"   // the cluster's
	localhost   host = "localhost"
	localDNS    host = "localDNS"  // in the pod
	webPod      host = "webPod"    // the meshed pod
	tproxyPod   host = "tproxyPod" // another, whose proxy is transparent
	batchPod    host = "batchPod"  // the pod without a sidecar
)

// dual is a pair of addresses: IPv4, IPv6.
type dual [2]netip.Addr

func addresses(v4, v6 string) dual { return dual{netip.MustParseAddr(v4), netip.MustParseAddr(v6)} }

// like is the address of a's family.
func (d dual) like(a netip.Addr) netip.Addr {
	if a.Is4() {
		return d[0]
	}
	return d[1]
}

// outsideHosts are documentation's addresses, so that no one else's are meant, and those of a cluster's DNS.
var outsideHosts = map[host]dual{
	server:      addresses("203.0.113.10", "2001:db8::10"),
	elsewhere:   addresses("203.0.113.200", "3fff::10"),
	meshRange:   addresses("198.51.100.7", "2001:db8:1::7"),
	podRange:    addresses("192.0.2.7", "2001:db8:2::7"),
	besideRange: addresses("192.0.2.16", "2001:db8:2:1::7"),
	dnsServer:   addresses("10.96.0.10", "fd00:96::a"),
}

var (
	loopback      = addresses("127.0.0.1", "::1")
	localDNSHosts = dual{netip.MustParseAddr("127.0.0.153")} // there is none of IPv6
)

// listener is one of the proxy's.
type listener string

const (
	direct     listener = "" // none
	outbound   listener = "outbound"
	inbound    listener = "inbound"
	inboundAs  listener = "inboundAs" // inbound, and on to the application as the client itself
	dnsAnswers listener = "dnsAnswers"
)

// Who answers a connection.
const (
	atOutside = "outside"
	atApp     = "app"
	atProxy   = "proxy" // the proxy's own ports: metrics and probes
)

// way is how a connection goes: through one of the proxy's listeners, or none, to who answers.
type way struct {
	Via listener
	At  string
}

// ways are all that there are.
func ways() []way {
	var all []way
	for _, via := range []listener{direct, outbound, inbound, inboundAs, dnsAnswers} {
		for _, at := range []string{atOutside, atApp, atProxy} {
			all = append(all, way{via, at})
		}
	}
	return all
}

// port is where the proxy listens: 0 for none.
func (p proxySpec) port(l listener) uint16 {
	switch l {
	case outbound:
		return p.Outbound
	case inbound, inboundAs:
		return p.Inbound
	case dnsAnswers:
		return p.DNS[0].Port()
	default:
		return 0
	}
}

// dns is where the proxy answers queries of the address's family: no valid address if nowhere.
func (p proxySpec) dns(a netip.Addr) netip.AddrPort {
	for _, at := range p.DNS {
		if at.Addr().Is4() == a.Is4() {
			return at
		}
	}
	return netip.AddrPort{}
}

// text is a way in the table.
func (p proxySpec) text(w way) string {
	if w.Via == direct {
		return "direct -> " + w.At
	}
	return fmt.Sprintf("%d -> %s", p.port(w.Via), w.At)
}

// answered is the line of who answers, at the address where the connection arrived and to the one from which it came.
func answered(name string, at netip.AddrPort, by netip.Addr) string {
	return fmt.Sprintf("%s %s asked by %s", name, at, by)
}

// relayed is an answer with what the proxy adds to it.
func relayed(answer string, via uint16, original netip.AddrPort) string {
	return fmt.Sprintf("%s via %d (original %s)", answer, via, original)
}

// inPod is where the proxy finds the application that an inbound connection was meant for.
func inPod(original netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(loopback.like(original.Addr()), original.Port())
}

func findScenario(name string) (scenario, error) {
	var names []string
	for _, s := range scenarios {
		if s.Mesh == name {
			return s, nil
		}
		names = append(names, s.Mesh)
	}
	return scenario{}, fmt.Errorf("mesh %q is none of %s", name, strings.Join(names, ", "))
}

// rows are those of all sections.
func (s scenario) rows() []row {
	var all []row
	for _, section := range s.Sections {
		all = append(all, section.Rows...)
	}
	return all
}

// shows reports whether there is a connection of that caller through that listener.
func (s scenario) shows(from caller, via listener) bool {
	return slices.ContainsFunc(s.rows(), func(r row) bool { return r.From == from && r.Want.Via == via })
}
