package verify

import (
	"os"
	"os/exec"
	"testing"
)

// detourctl's image has no iptables: the kernel itself is asked.
func TestWithoutIptablesTheRulesAreCheckedAllTheSame(t *testing.T) {
	programs := os.Getenv("PATH")
	for _, variant := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(variant, func(t *testing.T) {
			s := newScene(t, "osm", "envoy")
			s.conf["backend"] = "iptables"
			if variant == "iptables-legacy" { // what a namespace has already
				if _, err := exec.LookPath(variant); err != nil {
					t.Skip(err)
				}
				s.inPod(variant, "-t", "nat", "-N", "other")
			}
			s.add()
			s.run("envoy", "envoy", "1500:1500", "tcp/:15001", "tcp/:15003", "tcp4/127.0.0.1:15000", "tcp/:15010")
			s.run("app", "web", "1000:1000", "tcp/:8080")
			for _, c := range []struct {
				args []string
				want string
			}{
				{nil, ""},
				{[]string{"-I", "OUTPUT", "-p", "tcp", "-j", "ACCEPT"}, "rule-ahead ahead of detour's rules: what it takes is not redirected"},
				{[]string{"-D", "OUTPUT", "-p", "tcp", "-j", "ACCEPT"}, ""},
				{[]string{"-R", "PROXY_REDIRECT", "1", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "9"}, "rule-changed rule 1 of PROXY_REDIRECT is"},
			} {
				if c.args != nil {
					s.inPod(variant, append([]string{"-t", "nat"}, c.args...)...)
				}
				t.Setenv("PATH", "/nowhere")
				if c.want == "" {
					s.wantFine()
				} else {
					s.want(c.want)
				}
				t.Setenv("PATH", programs)
			}
			s.inPod(variant, "-t", "nat", "-R", "PROXY_REDIRECT", "1", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "15001")
			s.annotate("openservicemesh.io/outbound-port-exclusion-list", "4711")
			t.Setenv("PATH", "/nowhere")
			s.want("drifted 4711")
		})
	}
}
