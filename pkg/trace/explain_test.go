package trace

import (
	"testing"

	"github.com/detour-cni/detour/pkg/rules"
)

func TestExplain(t *testing.T) {
	rs := set(
		in(rules.Mangle, rules.Prerouting, rules.SetMark(1), rules.InInterface("eth1")),
		rule(rules.Output, rules.Jump("SUB"), rules.TCP),
		rule("SUB", rules.Return{}, rules.Destination{Prefixes: prefixes("9.0.0.0/8 8.0.0.0/8 ::/0")}, rules.TCP, rules.DstPorts{Ports: []uint16{80, 81}}),
		rule("SUB", rules.Return{}, rules.Destination{Prefixes: prefixes("::/0")}),
		rule("SUB", rules.Redirect(15001), rules.TCP),
	)
	path, err := Walk(rs, out("1.1.1.1:80"))
	if err != nil {
		t.Fatal(err)
	}
	want := `out tcp 10.0.0.2:40000 -> 1.1.1.1:80 on eth0, uid 1000, gid 100
OUTPUT, table nat:
* OUTPUT 1: -p tcp -j SUB (it is tested)
    SUB 1: -d 9.0.0.0/8 -p tcp -m multiport --dports 80,81 -j RETURN (and 1 more)
*   SUB 2: -p tcp -j REDIRECT --to-ports 15001 (it is tested)
PREROUTING, table mangle:
  PREROUTING 1: -i eth1 -j MARK --set-xmark 0x1/0xffffffff
redirected to port 15001
`
	if got := path.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	missed := []rules.Match{nil, rs.Rules[2].Matches[0], nil, rules.InInterface("eth1")}
	for i, s := range path.Steps {
		if (s.Missed == nil) != (missed[i] == nil) {
			t.Errorf("step %d missed %v", i, s.Missed)
		}
	}
}

func TestPacketAndVerdictSayWhatIsUnusual(t *testing.T) {
	p := into("[fd00::2]:80")
	p.State = rules.Established
	if got := p.String(); got != "in tcp [fd00::1]:40000 -> [fd00::2]:80 on eth0, ESTABLISHED" {
		t.Error(got)
	}
	if got := (Verdict{}).String(); got != "Kind(0)" {
		t.Error(got)
	}
}
