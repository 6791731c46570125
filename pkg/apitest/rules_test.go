//go:build kubeapi

package apitest

import (
	"os/exec"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/nettest"
)

// programs list the kernel's rules; the sections hold what the scenario wants of them.
var programs = []struct{ program, section string }{
	{"iptables-nft", "want.iptables"},
	{"ip6tables-nft", "want.ip6tables"},
}

// wantRulesAndPackets wants the scenario's rules in the kernel, no other, and its packets to end where it says.
func (s *scene) wantRulesAndPackets() {
	s.t.Helper()
	for _, p := range programs {
		want := listed(strings.ReplaceAll(s.scenario.Section(p.section), "\n:", "\n-N "))
		if got := s.rules(p.program); !slices.Equal(got, want) {
			s.t.Errorf("%s -S has\n%s\nwant\n%s", p.program, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	s.wantPackets(s.scenario.Section("packets"))
}

// wantUntouched wants no rule in the kernel and packets to go as without a mesh.
func (s *scene) wantUntouched() {
	s.t.Helper()
	for _, p := range programs {
		if got := s.rules(p.program); len(got) > 0 {
			s.t.Errorf("%s -S has\n%s\nwant nothing", p.program, strings.Join(got, "\n"))
		}
	}
	s.wantPackets("out 10.96.0.10:80 -> outside\nout [2001:db8::10]:80 -> outside\nin 8080 -> app")
}

func (s *scene) wantPackets(text string) {
	s.t.Helper()
	packets, err := nettest.ParsePackets(text)
	if err != nil {
		s.t.Fatal(err)
	}
	nettest.CheckPackets(s.t, s.world, packets, 15001, 15003)
}

// rules lists the chains and rules in the pod's nat table.
func (s *scene) rules(program string) []string {
	s.t.Helper()
	return listed(s.inPod(program, "-t", "nat", "-S"))
}

// inPod runs a program in the pod's network namespace.
func (s *scene) inPod(program string, args ...string) string {
	s.t.Helper()
	nettest.RequireProgram(s.t, program)
	var out []byte
	err := s.world.Pod.Do(func() (err error) {
		out, err = exec.Command(program, args...).CombinedOutput()
		return err
	})
	if err != nil {
		s.t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// listed returns what a listing or an iptables-restore input says of chains and rules, chain by chain; the rules of a
// chain stay in their order.
func listed(text string) []string {
	var chains, rules []string
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) < 2:
		case words[0] == "-N":
			chains = append(chains, "-N "+words[1])
		case words[0] == "-A":
			rules = append(rules, strings.Join(words, " "))
		}
	}
	slices.Sort(chains)
	slices.SortStableFunc(rules, func(a, b string) int { return strings.Compare(strings.Fields(a)[1], strings.Fields(b)[1]) })
	return append(chains, rules...)
}
