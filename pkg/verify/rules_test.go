package verify

import "testing"

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
