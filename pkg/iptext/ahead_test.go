package iptext

import (
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/rules"
)

// want is a pod's rules that use two tables.
const want = `*mangle
:ISTIO_INBOUND - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A PREROUTING -p tcp -m mark --mark 0x539 -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:ISTIO_OUTPUT - [0:0]
-A OUTPUT -o net1 -j RETURN
-A OUTPUT -j ISTIO_OUTPUT
COMMIT
`

// What is ahead of the last rule of ours is ahead; what CHECK says of that with real packets is in pkg/backend.
func TestAhead(t *testing.T) {
	t.Parallel()
	w, err := ParseSave(want)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		before, line string // before which of want's lines stands what
		want         string
	}{
		{"-A PREROUTING -p tcp -j", "-A PREROUTING -j ACCEPT", "IPv4 mangle: PREROUTING has -A PREROUTING -j ACCEPT ahead of detour's rules: what it takes is not redirected"},
		{"-A PREROUTING -p tcp -m mark", "-A PREROUTING -j ACCEPT", "IPv4 mangle: PREROUTING has -A PREROUTING -j ACCEPT ahead of detour's rules: what it takes is not redirected"},
		{"-A PREROUTING -p tcp -j", "-A PREROUTING -p tcp -j TPROXY --on-port 1 --on-ip 0.0.0.0 --tproxy-mark 0x0/0x0", "TPROXY --on-port 1 --on-ip 0.0.0.0 --tproxy-mark 0x0/0x0 ahead of"},
		{"-A PREROUTING -p tcp -j", "-A PREROUTING -j DROP", ""},
		{"-A PREROUTING -p tcp -j", "-A PREROUTING -j MARK --set-xmark 0x1/0x1", ""},
		{"-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT -o l+ -j RETURN", "-A OUTPUT -o l+ -j RETURN ahead of"},
		{"-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT -o lo1 -j RETURN", "-A OUTPUT -o lo1 -j RETURN ahead of"},
		{"-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT -o lo -j RETURN", ""},
		{"-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT ! -o eth0 -j RETURN", ""},
		{"-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT -m comment --comment -j -j ACCEPT", "--comment -j -j ACCEPT ahead of"},
		{"-A OUTPUT -j ISTIO_OUTPUT", `-A OUTPUT -m comment --comment "-p tcp -j ACCEPT" -d 1.1.1.1/32 -j ACCEPT`, ""},
		{"-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT -m state --state NEW -j NETMAP --to 10.0.0.0/8", "-j NETMAP --to 10.0.0.0/8 ahead of"},
		{"-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT -j T\n-A T -j U\n:U - [0:0]\n:T - [0:0]\n-A U -j T\n-A U -g V\n:V - [0:0]\n-A V -j ACCEPT", "-A OUTPUT -j T, and -A T -j U, and -A U -g V, and -A V -j ACCEPT ahead of"},
		{"-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT -j T\n:T - [0:0]\n-A T -g V\n:V - [0:0]\n-A T -j ACCEPT", ""},
	} {
		text := strings.Replace(want, c.before, c.line+"\n"+c.before, 1)
		got, err := ParseSave(text)
		if err != nil || text == want {
			t.Fatalf("%s: %v", c.line, err)
		}
		found := Differences(rules.IPv4, w, got)
		if c.want == "" && len(found) > 0 || c.want != "" && (len(found) != 1 || !slices.ContainsFunc(found, func(s string) bool { return strings.Contains(s, c.want) })) {
			t.Errorf("with %s: got %q, not %q", c.line, found, c.want)
		}
	}
}
