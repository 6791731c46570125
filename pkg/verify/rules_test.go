package verify

import (
	"os"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

func TestEachDifferenceOfTheRulesHasAName(t *testing.T) {
	iptables := func(args ...string) func(*scene) {
		return func(s *scene) { s.inPod("iptables-nft", append([]string{"-t", "nat"}, args...)...) }
	}
	nft := func(commands ...string) func(*scene) {
		return func(s *scene) {
			for _, c := range commands {
				s.inPod("nft", c)
			}
		}
	}
	for want, c := range map[string]struct {
		backend string
		happens func(*scene)
	}{
		"rule-missing -A OUTPUT -p tcp -j PROXY_OUTPUT is missing from OUTPUT": {"iptables", iptables("-D", "OUTPUT", "-p", "tcp", "-j", "PROXY_OUTPUT")},
		"rule-changed rule 1 of PROXY_REDIRECT is":                             {"iptables", iptables("-R", "PROXY_REDIRECT", "1", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "9")},
		"rule-changed is in OUTPUT 2 times":                                    {"iptables", iptables("-A", "OUTPUT", "-p", "tcp", "-j", "PROXY_OUTPUT")},
		"rule-added rule 2 of PROXY_IN_REDIRECT is not detour's: -A":           {"iptables", iptables("-A", "PROXY_IN_REDIRECT", "-j", "ACCEPT", "-m", "comment", "--comment", "chain x is missing")},
		"rule-ahead ahead of detour's rules: what it takes is not redirected":  {"iptables", iptables("-I", "OUTPUT", "-p", "tcp", "-j", "ACCEPT")},
		"not-tracked a connection that is not tracked is not redirected":       {"iptables", func(s *scene) { s.inPod("iptables-nft", "-t", "raw", "-A", "OUTPUT", "-p", "tcp", "-j", "NOTRACK") }},
		"rule-missing table inet detour is missing":                            {"nftables", nft("delete table inet detour")},
		"rule-added rule 2 of PROXY_IN_REDIRECT is not detour's":               {"nftables", nft("add rule inet detour PROXY_IN_REDIRECT accept")},
		"rule-added chain x is not detour's":                                   {"nftables", nft("add chain inet detour x")},
		"table-dormant table inet detour is dormant":                           {"nftables", nft("add table inet detour { flags dormant; }")},
		"rule-ahead what it takes is not redirected":                           {"nftables", nft("add table ip nat", "add chain ip nat o { type nat hook output priority -100; }", "add rule ip nat o meta l4proto tcp redirect to :9")},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			s := newOSM(t, c.backend)
			s.wantFine()
			c.happens(s)
			s.want(want)
		})
	}
}

// The image of detourctl has no programs.
func TestItStartsNoProgram(t *testing.T) {
	for _, variant := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(variant, func(t *testing.T) {
			s := newScene(t, "osm", "envoy")
			nettest.RequireProgram(t, variant)
			s.inPod(variant, "-t", "nat", "-N", "foreign") // ADD takes the variant that the namespace has
			s.add()
			s.run("envoy", "envoy", "1500:1500", "tcp/:15001", "tcp/:15003")
			verify := func() Pod {
				path := os.Getenv("PATH")
				defer os.Setenv("PATH", path)
				os.Setenv("PATH", "/nowhere")
				return s.verify()
			}
			if p := verify(); p.Result != Fine || p.Backend != variant {
				t.Errorf("%+v", p)
			}
			s.set(s.config, "spec/traffic/outboundPortExclusionList", []int{7000})
			s.inPod(variant, "-t", "nat", "-D", "PROXY_IN_REDIRECT", "1")
			p := verify()
			s.compare(p.Findings, []string{"rule-missing rule 1 of PROXY_IN_REDIRECT", "drifted outboundPortExclusionList has 7000 today"})
			if variant == "iptables-nft" {
				s.inPod("nft", "add chain ip nat odd { type nat hook prerouting priority -50; }")
				if p := verify(); len(p.Unknown) != 1 || p.Unknown[0].Name != RulesUnknown {
					t.Errorf("%+v", p)
				}
			}
		})
	}
}
