package redirect

import (
	"net/netip"
	"strings"
	"testing"
)

func valid() Policy {
	return Policy{
		Chains: Chains{Inbound: "IN", InboundRedirect: "IN_R", Outbound: "OUT", OutboundRedirect: "OUT_R"},
		Proxy:  Proxy{UID: 1500, Inbound: 15003, Outbound: 15001, Admin: 15000},
	}
}

func TestValidateNamesWhatIsWrong(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(p *Policy){
		`chain ""`:                              func(p *Policy) { p.Chains.Inbound = "" },
		`chain "A B"`:                           func(p *Policy) { p.Chains.Inbound = "A B" },
		`chain "` + strings.Repeat("X", 29):     func(p *Policy) { p.Chains.Inbound = strings.Repeat("X", 29) },
		`chain "OUT" stands for two`:            func(p *Policy) { p.Chains.Inbound = "OUT" },
		`proxy UID 0`:                           func(p *Policy) { p.Proxy.UID = 0 },
		`proxy ports 15001 (inbound) and 15001`: func(p *Policy) { p.Proxy.Inbound = 15001 },
		`proxy ports 0`:                         func(p *Policy) { p.Proxy.Inbound = 0 },
		`here: port 0`:                          func(p *Policy) { p.Inbound.ExcludePorts = []Port{{Number: 0, Origin: "here"}} },
		`range 10.0.0.1/8 is not`:               func(p *Policy) { p.Outbound.ExcludeRanges = []Range{{Prefix: netip.MustParsePrefix("10.0.0.1/8")}} },
		`range invalid Prefix`:                  func(p *Policy) { p.Outbound.ExcludeRanges = []Range{{}} },
		`range ::ffff:10.0.0.0/104`: func(p *Policy) {
			p.Outbound.ExcludeRanges = []Range{{Prefix: netip.MustParsePrefix("::ffff:10.0.0.0/104")}}
		},
	} {
		p := valid()
		spoil(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
