package trace

import (
	"fmt"
	"strings"

	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/rules"
)

// String explains the path to a reader: the packet; each rule it met by table, chain and number, as a line of iptables, with
// * and what it is for if it matched; and where the packet ends.
//
//	out tcp 10.0.0.2:40000 -> 1.1.1.1:80 on eth0, uid 1000, gid 0
//	OUTPUT, table nat:
//	* OUTPUT 1: -p tcp -j PROXY_OUTPUT (every outbound TCP connection is looked at)
//	    PROXY_OUTPUT 1: -m owner --uid-owner 1500 -j RETURN
//	*   PROXY_OUTPUT 2: -j PROXY_REDIRECT (everything else goes to the proxy)
//	*     PROXY_REDIRECT 1: -p tcp -j REDIRECT --to-ports 15001 (outbound connections go to the proxy's outbound listener)
//	redirected to port 15001
func (p Path) String() string {
	var b strings.Builder
	fmt.Fprintln(&b, p.Packet)
	at := ""
	for _, s := range p.Steps {
		if now := fmt.Sprintf("%s, table %s:", s.Hook, s.Rule.Chain.Table); now != at {
			fmt.Fprintln(&b, now)
			at = now
		}
		fmt.Fprintln(&b, s.explain(rules.Of(p.Packet.Dst.Addr())))
	}
	fmt.Fprintln(&b, p.Verdict)
	return b.String()
}

func (s Step) explain(f rules.Family) string {
	sign, why := " ", ""
	if s.Missed == nil {
		sign, why = "*", " ("+s.Rule.Why+")"
	}
	return fmt.Sprintf("%s %*s%s %d: %s%s", sign, 2*s.Depth, "", s.Rule.Chain.Name, s.Number, line(s.Rule, f), why)
}

// line is the rule as iptables prints it for the family, without its chain; of several lines, the first and how many more.
func line(r rules.Rule, f rules.Family) string {
	lines := iptext.For(rules.Ruleset{Rules: []rules.Rule{r}}, f).Rules
	text := strings.TrimPrefix(iptext.Print(lines[0]), "-A "+r.Chain.Name+" ")
	if more := len(lines) - 1; more > 0 {
		text += fmt.Sprintf(" (and %d more)", more)
	}
	return text
}
