package backend

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

const (
	proxied = "out 1.1.1.1:80 -> proxy 15001\nin4 8080 -> proxy 15003"
	outPast = "out 1.1.1.1:80 -> outside\nin4 8080 -> proxy 15003"
	past    = "out 1.1.1.1:80 -> outside\nin4 8080 -> app"
	inPast  = "out 1.1.1.1:80 -> proxy 15001\nin4 8080 -> app"
	// elsewhere is where a foreign redirection to :15003 leads.
	elsewhere = "out 1.1.1.1:80 -> proxy 15003\nin4 8080 -> proxy 15003"
)

// foreign are things that others do to a pod that is programmed, with where its packets end then and what CHECK has to say,
// which is nothing if it is "".
var foreign = []struct {
	name    string
	only    string // what the backends' names have to contain
	script  string
	packets string
	want    string
}{
	{"a nat chain ahead", "tables", `nft 'table inet theirs { chain o { type nat hook output priority -150; meta l4proto tcp redirect to :15003; }; }'`,
		elsewhere, "chain o of table inet theirs has `meta l4proto tcp redirect to :15003`: what it takes is not redirected"},
	{"a nat chain of the same priority, which the kernel asks first", "tables", `nft 'table ip theirs { chain o { type nat hook output priority -100; ip protocol tcp counter redirect to :15003; }; }'`,
		elsewhere, "chain o of table ip theirs has `ip protocol tcp [counter] redirect to :15003`: what it takes is not redirected"},
	{"a nat chain that jumps", "tables", `nft 'table ip theirs { chain t { ct state new oifname != "lo" meta l4proto tcp redirect to :15003; }; chain r { return; }; chain o { type nat hook output priority -150; jump r; jump t; }; }'`,
		elsewhere, "chain o of table ip theirs has `jump t`, and `ct state new oifname != \"lo\" meta l4proto tcp redirect to :15003`: what it takes is not redirected"},
	{"a nat chain that comes later", "tables", `nft 'table inet theirs { chain o { type nat hook output priority -99; meta l4proto tcp redirect to :15003; }; }'`, proxied, ""},
	{"a nat chain that accepts", "tables", `nft 'table inet theirs { chain o { type nat hook output priority -150; accept; }; }'`, proxied, ""},
	{"a nat chain that accepts before it would translate", "tables", `nft 'table inet theirs { chain o { type nat hook output priority -150; accept; meta l4proto tcp redirect to :15003; }; }'`, proxied, ""},
	{"a filter chain that accepts", "tables", `nft 'table inet theirs { chain o { type filter hook output priority -300; accept; }; }'`, proxied, ""},
	{"a nat chain for one address", "tables", `nft 'table ip theirs { chain o { type nat hook output priority -150; ip daddr 10.9.9.9 meta l4proto tcp redirect to :15003; meta skuid 7 meta l4proto tcp redirect to :15003; meta l4proto udp redirect to :15003; }; }'`, proxied, ""},
	{"a nat chain for the other family", "tables", `nft 'table inet theirs { chain o { type nat hook output priority -150; meta nfproto ipv6 meta l4proto tcp redirect to :15003; }; }; table ip6 theirs { chain o { type nat hook output priority -150; meta l4proto tcp redirect to :15003; }; }'`, proxied, ""},
	{"connections that are not tracked", "tables", `nft 'table inet theirs { chain o { type filter hook output priority -300; meta l4proto tcp notrack; }; chain i { type filter hook prerouting priority -300; notrack; }; }'`,
		past, "chain o of table inet theirs has `meta l4proto tcp [notrack]`: what it takes is not redirected"},
	{"not tracking what is tracked already", "tables", `nft 'table inet theirs { chain o { type filter hook output priority -150; meta l4proto tcp notrack; }; }'`, proxied, ""},

	{"our table is dormant", "nftables", `nft 'add table inet detour { flags dormant; }'`,
		past, "table inet detour is dormant: none of its rules is met"},
	{"a rule in our base chain", "nftables", `nft insert rule inet detour nat-OUTPUT accept`, outPast, "rule 1 of nat-OUTPUT is accept, not meta nfproto != ipv4"},
	{"iptables redirects as well", "nftables", `iptables-nft -t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 15003`,
		elsewhere, "chain OUTPUT of table ip nat has `meta l4proto tcp [counter] [target]`: what it takes is not redirected"},
	{"iptables does not track", "nftables", `for c in PREROUTING OUTPUT; do iptables-nft -t raw -A $c -p tcp -j CT --notrack; done`, past, "chain OUTPUT of table ip raw has"},
	{"iptables accepts", "nftables", `iptables-nft -t nat -A OUTPUT -p tcp -j ACCEPT; iptables-nft -t raw -A OUTPUT -p udp -j CT --notrack`, proxied, ""},
	{"iptables tracks in a zone, and has the pod fail", "nftables", `iptables-nft -t raw -A OUTPUT -p tcp -j CT --zone-orig 5`, "", ""},

	{"our table is dormant", "iptables-nft", `nft 'add table ip nat { flags dormant; }'`,
		past, "table ip nat is dormant: none of its rules is met"},
	{"another's table is dormant", "iptables-nft", `nft 'add table ip mangle { flags dormant; }'; nft 'add table inet theirs { flags dormant; }'`, proxied, ""},
	{"accepted ahead", "iptables", `iptables -t nat -I OUTPUT -j ACCEPT`, outPast, "IPv4 nat: OUTPUT has -A OUTPUT -j ACCEPT ahead of detour's rules: what it takes is not redirected"},
	{"returned ahead", "iptables", `iptables -t nat -I OUTPUT -p tcp -m conntrack --ctstate NEW,RELATED -j RETURN`, outPast, "--ctstate NEW,RELATED -j RETURN ahead of"},
	{"accepted ahead, with a comment", "iptables", `iptables -t nat -I OUTPUT ! -o lo -m comment --comment 'a "b" -d c' -j ACCEPT`, outPast, "IPv4 nat: OUTPUT has -A OUTPUT ! -o lo"},
	{"accepted ahead, what comes in", "iptables", `iptables -t nat -I PREROUTING -i ` + nettest.PodLink + ` -p tcp -j ACCEPT`, inPast, "IPv4 nat: PREROUTING has -A PREROUTING -i " + nettest.PodLink},
	{"redirected ahead", "iptables", `iptables -t nat -I OUTPUT -p tcp -j REDIRECT --to-ports 15003`, elsewhere, "-j REDIRECT --to-ports 15003 ahead of"},
	{"accepted in a chain of theirs", "iptables", `iptables -t nat -N T; iptables -t nat -A T -d 10.9.9.9 -j RETURN; iptables -t nat -A T -j ACCEPT; iptables -t nat -I OUTPUT -j T`,
		outPast, "OUTPUT has -A OUTPUT -j T, and -A T -j ACCEPT ahead of"},
	{"a chain of theirs that nothing comes back from", "iptables", `iptables -t nat -N T; iptables -t nat -I OUTPUT -g T`, outPast, "OUTPUT has -A OUTPUT -g T ahead of"},
	{"a chain of theirs that returns", "iptables", `iptables -t nat -N T; iptables -t nat -A T -j RETURN; iptables -t nat -A T -j ACCEPT; iptables -t nat -I OUTPUT -j T`, proxied, ""},
	{"accepted behind", "iptables", `iptables -t nat -A OUTPUT -j ACCEPT`, proxied, ""},
	{"accepted in a table that is not ours", "iptables", `iptables -t mangle -I OUTPUT -j ACCEPT; iptables -t filter -I OUTPUT -j ACCEPT; iptables -t raw -I OUTPUT -j ACCEPT`, proxied, ""},
	{"accepted for less", "iptables", `for m in "-d 10.0.0.0/8" "-o lo" "-p udp" "-p tcp --dport 9" "-m owner --uid-owner 7" "-m conntrack --ctstate ESTABLISHED" "! -o ` + nettest.PodLink + `"; do
		iptables -t nat -I OUTPUT $m -j ACCEPT; done`, proxied, ""},
	{"not tracked", "iptables", `for c in PREROUTING OUTPUT; do iptables -t raw -A $c -p tcp -j CT --notrack; done`, past, "IPv4 raw: OUTPUT has -A OUTPUT -p tcp -j"},
	{"not tracked, but TCP is", "iptables", `iptables -t raw -A OUTPUT -p udp -j CT --notrack; iptables -t raw -A PREROUTING -d 10.9.9.9 -j CT --notrack`, proxied, ""},
	{"tracked in a zone, and the pod fails", "iptables", `iptables -t raw -A OUTPUT -p tcp -j CT --zone-orig 5`, "", ""},
	{"IPv6 is not redirected", "iptables", `ip6tables -t nat -I OUTPUT -j ACCEPT`, proxied, ""},
}

// What is said keeps packets from the proxy, and what is not said doesn't.
func TestWhatOthersTakeAhead(t *testing.T) {
	nettest.RequireNetns(t)
	decision, err := testcase.Find(t, "../..", "osm/defaults").Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	all := programs(t, decision.Policy.Ruleset(), rules.Families[:1])
	for _, c := range foreign {
		packets, err := nettest.ParsePackets(c.packets)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all {
			variant := p.prepared.Variant()
			if !strings.Contains(variant, c.only) {
				continue
			}
			t.Run(c.name+"/"+variant, func(t *testing.T) {
				t.Parallel()
				world := nettest.StartWorld(t)
				r := applied(t, world.Pod, p)
				shell(t, world.Pod, variant, c.script)
				nettest.CheckPackets(t, world, packets, 15001, 15003)
				checkSaid(t, world.Pod, r, c.want)
			})
		}
	}
}

// applied carries a program out and returns its record.
func applied(t *testing.T, pod *nettest.Namespace, p *Program) attachment.Record {
	t.Helper()
	var r attachment.Record
	p.Keep(&r)
	err := testcase.Inside(t, pod, func(ctx context.Context, lock *os.File) error { return p.Apply(ctx, lock, attachment.Record{}) })
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func checkSaid(t *testing.T, pod *nettest.Namespace, r attachment.Record, want string) {
	t.Helper()
	var found []string
	err := pod.Do(func() (err error) {
		found, err = Differences(t.Context(), r)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if want == "" && len(found) > 0 || want != "" && !slices.ContainsFunc(found, func(s string) bool { return strings.Contains(s, want) }) {
		t.Errorf("CHECK says %q, not %q", found, want)
	}
}

// shell runs a script in which iptables is the variant, if it is one of iptables'.
func shell(t *testing.T, pod *nettest.Namespace, variant, script string) {
	t.Helper()
	if suffix, ok := strings.CutPrefix(variant, "iptables"); ok {
		script = strings.NewReplacer("ip6tables ", "ip6tables"+suffix+" ", "iptables ", "iptables"+suffix+" ").Replace(script)
	}
	var out []byte
	err := pod.Do(func() (err error) {
		cmd := exec.Command("sh", "-ec", script)
		cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE=/proc/self/stat")
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}
