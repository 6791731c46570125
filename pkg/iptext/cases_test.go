package iptext_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

func TestEveryCaseGivesItsRules(t *testing.T) {
	for _, c := range testcase.Load(t, "../..") {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			decision, err := c.Decide(t)
			got := map[string]string{"want.error": "", "want.skip": "", "want.warnings": "", "want.iptables": "", "want.ip6tables": "", "want.lo": ""}
			switch {
			case err != nil:
				got["want.error"] = err.Error() + "\n"
			case decision.Skip != "":
				got["want.skip"] = decision.Skip + "\n"
			default:
				rs := decision.Policy.Ruleset()
				for _, f := range decision.Families {
					if !rs.Gated() { // which is nothing for iptables
						got[map[rules.Family]string{rules.IPv4: "want.iptables", rules.IPv6: "want.ip6tables"}[f]] = iptext.Restore(rs, f, false)
					}
					for _, p := range rs.Setup.Loopback {
						if rules.Of(p.Addr()) == f {
							got["want.lo"] += p.String() + "\n"
						}
					}
				}
			}
			for _, w := range decision.Warnings {
				got["want.warnings"] += w + "\n"
			}
			c.Want(t, got)
		})
	}
}

func TestWhatIsPrintedIsParsedBackToTheSameRules(t *testing.T) {
	for _, c := range testcase.Load(t, "../..") {
		for _, section := range []string{"want.iptables", "want.ip6tables"} {
			var table rules.Table
			for line := range strings.Lines(c.Section(section)) {
				if strings.HasPrefix(line, "*") {
					table = rules.Table(strings.TrimSpace(line[1:]))
				}
				if !strings.HasPrefix(line, "-A") {
					continue
				}
				line = strings.TrimSpace(line)
				r, err := iptext.ParseRule(table, line)
				if err != nil {
					t.Errorf("%s: %v", c.Name, err)
				} else if iptext.Print(r) != line {
					t.Errorf("%s: %q comes back as %q", c.Name, line, iptext.Print(r))
				}
			}
		}
	}
}

func TestRenderingTwiceGivesTheSameBytes(t *testing.T) {
	for _, c := range testcase.Load(t, "../..") {
		render := func() string {
			decision, err := c.Decide(t)
			if err != nil || decision.Skip != "" {
				return fmt.Sprint(decision.Skip, err)
			}
			rs := decision.Policy.Ruleset()
			return iptext.Restore(rs, rules.IPv4, true) + iptext.Restore(rs, rules.IPv6, true) + fmt.Sprint(rs.Setup, decision.Warnings)
		}
		first := render()
		for range 5 {
			if again := render(); again != first {
				t.Errorf("%s: first\n%sthen\n%s", c.Name, first, again)
			}
		}
	}
}

// The net conf may give a mesh's annotations another prefix. No family knows its annotations by anything else.
func TestEveryCaseGivesItsRulesUnderAnotherPrefix(t *testing.T) {
	const other = "other.example/"
	cases := map[string]int{}
	for _, c := range testcase.Load(t, "../..") {
		cases[c.Mesh]++
		row, _ := mesh.Find(c.Mesh)
		if len(row.Prefixes) != 1 || c.Section("want.iptables") == "" {
			continue
		}
		d, err := row.With(mesh.Override{AnnotationPrefix: other})
		if err != nil {
			t.Fatal(err)
		}
		request, objects := c.Objects(t)
		decided, err := decision.Options{Dialect: d}.Decide(decision.Input{
			ID: request.ID, Pod: bytes.ReplaceAll(objects.Pod, []byte(row.Prefixes[0]), []byte(other)), Config: objects.Config, Addresses: c.Addresses(t),
		})
		if got := iptext.Restore(decided.Rules, rules.IPv4, false); err != nil || got != c.Section("want.iptables") {
			t.Errorf("%s: got %v\n%s", c.Name, err, got)
		}
	}
	for _, name := range mesh.Names() {
		if cases[name] == 0 {
			t.Errorf("mesh %s has no case", name)
		}
	}
}
