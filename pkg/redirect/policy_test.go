package redirect

import (
	"net/netip"
	"strings"
	"testing"
)

func valid() OSM {
	return OSM{
		Chains: Chains{Inbound: "IN", InboundRedirect: "IN_R", Outbound: "OUT", OutboundRedirect: "OUT_R"},
		Proxy:  Proxy{UID: 1500, Inbound: 15003, Outbound: 15001, Admin: 15000},
	}
}

func TestValidateNamesWhatIsWrong(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(p *OSM){
		`chain ""`:                                  func(p *OSM) { p.Chains.Inbound = "" },
		`chain "A B"`:                               func(p *OSM) { p.Chains.Inbound = "A B" },
		`chain "` + strings.Repeat("X", 29):         func(p *OSM) { p.Chains.Inbound = strings.Repeat("X", 29) },
		`chain "OUT" stands for two`:                func(p *OSM) { p.Chains.Inbound = "OUT" },
		`proxy UID 0`:                               func(p *OSM) { p.Proxy.UID = 0 },
		`proxy port 15001 stands for two listeners`: func(p *OSM) { p.Proxy.Inbound = 15001 },
		`proxy port 0`:                              func(p *OSM) { p.Proxy.Inbound = 0 },
		`here: port 0`:                              func(p *OSM) { p.Inbound.ExcludePorts = []Port{{Number: 0, Origin: "here"}} },
		`range 10.0.0.1/8 is not`:                   func(p *OSM) { p.Outbound.ExcludeRanges = []Range{{Prefix: netip.MustParsePrefix("10.0.0.1/8")}} },
		`range invalid Prefix`:                      func(p *OSM) { p.Outbound.ExcludeRanges = []Range{{}} },
		`range ::ffff:10.0.0.0/104`: func(p *OSM) {
			p.Outbound.ExcludeRanges = []Range{{Prefix: netip.MustParsePrefix("::ffff:10.0.0.0/104")}}
		},
		`"eth 0" is not an interface`: func(p *OSM) { p.Inbound.ExcludeInterfaces = []Interface{{Name: "eth 0"}} },
		`pod address ::1`:             func(p *OSM) { p.PodIPs = []netip.Addr{netip.IPv6Loopback()} },
		`proxy port 0: a`:             func(p *OSM) { p.LocalDNS = netip.MustParseAddr("127.0.0.153") },
	} {
		p := valid()
		spoil(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func validIstio() Istio {
	return Istio{Proxy: Proxy{UID: 1337, GID: 1337, Inbound: 15006, Outbound: 15001, Tunnel: 15008, DNS: 15053}}
}

func TestValidateNamesWhatIsWrongForIstio(t *testing.T) {
	if err := validIstio().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(p *Istio){
		`proxy UID or GID 0: root`: func(p *Istio) { p.Proxy.GID = 0 },
		`proxy UID or GID 0`:       func(p *Istio) { p.Proxy.UID = 0 },
		`proxy port 15008 stands`:  func(p *Istio) { p.Proxy.DNS = 15008 },
		`there: port 0`:            func(p *Istio) { p.Inbound.IncludePorts = []Port{{Number: 0, Origin: "there"}} },
		`range 10.0.0.1/8 is not`:  func(p *Istio) { p.Outbound.IncludeRanges = []Range{{Prefix: netip.MustParsePrefix("10.0.0.1/8")}} },
		`"-i" is not an interface`: func(p *Istio) { p.VirtualInterfaces = []Interface{{Name: "-i"}} },
	} {
		p := validIstio()
		spoil(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestInterfaceNames(t *testing.T) {
	for name, want := range map[string]bool{
		"eth0": true, "net1.100": true, "veth_a-b@c": true, "exactly15chars_": true,
		"": false, "sixteen-chars-xx": false, "a/b": false, "a b": false, "eth+": false, "-i": false, ".": false, "..": false, "é": false,
	} {
		if got := IsInterface(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}
