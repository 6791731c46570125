package iptables

import (
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// commands are what the meshes' own init containers run, as their guides and sources list them, for some scenarios.
var commands = map[string]string{
	// the published troubleshooting guide
	"osm/guide": `iptables -t nat -N PROXY_INBOUND && iptables -t nat -N PROXY_IN_REDIRECT && iptables -t nat -N PROXY_OUTPUT && iptables -t nat -N PROXY_REDIRECT && iptables -t nat -A PROXY_REDIRECT -p tcp -j REDIRECT --to-port 15001 && iptables -t nat -A PROXY_REDIRECT -p tcp --dport 15000 -j ACCEPT && iptables -t nat -A OUTPUT -p tcp -j PROXY_OUTPUT && iptables -t nat -A PROXY_OUTPUT -m owner --uid-owner 1500 -j RETURN && iptables -t nat -A PROXY_OUTPUT -d 127.0.0.1/32 -j RETURN && iptables -t nat -A PROXY_OUTPUT -j PROXY_REDIRECT && iptables -t nat -A PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-port 15003 && iptables -t nat -A PREROUTING -p tcp -j PROXY_INBOUND && iptables -t nat -A PROXY_INBOUND -p tcp --dport 15010 -j RETURN && iptables -t nat -A PROXY_INBOUND -p tcp --dport 15901 -j RETURN && iptables -t nat -A PROXY_INBOUND -p tcp --dport 15902 -j RETURN && iptables -t nat -A PROXY_INBOUND -p tcp --dport 15903 -j RETURN && iptables -t nat -A PROXY_INBOUND -p tcp -j PROXY_IN_REDIRECT && iptables -t nat -I PROXY_OUTPUT -d 1.1.1.1/32 -j RETURN && iptables -t nat -I PROXY_OUTPUT -d 2.2.2.2/24 -j RETURN && iptables -t nat -I PROXY_OUTPUT -p tcp --match multiport --dports 6379,7070,8080 -j RETURN`,

	"osm-v1/interfaces": osmV1Inbound + `
		iptables -t nat -I OSM_PROXY_INBOUND -i net1 -j RETURN
		iptables -t nat -I OSM_PROXY_INBOUND -i net2 -j RETURN
		iptables -t nat -I OSM_PROXY_INBOUND -p tcp --match multiport --dports 5432 -j RETURN` + osmV1Outbound + `
		iptables -t nat -A OSM_PROXY_OUTBOUND -o net1 -j RETURN
		iptables -t nat -A OSM_PROXY_OUTBOUND -o net2 -j RETURN
		iptables -t nat -A OSM_PROXY_OUTBOUND -j OSM_PROXY_OUT_REDIRECT`,
	"osm-v1/pod-ip": osmV1Inbound + osmV1Outbound + `
		iptables -t nat -I OUTPUT -p tcp -o lo -d 127.0.0.1/32 -m owner --uid-owner 1500 -j DNAT --to-destination 10.77.0.2
		iptables -t nat -A OSM_PROXY_OUTBOUND -j OSM_PROXY_OUT_REDIRECT`,
	"osm-v1/inclusions": osmV1Inbound + osmV1Outbound + `
		iptables -t nat -A OSM_PROXY_OUTBOUND -d 10.1.9.0/24 -j RETURN
		iptables -t nat -A OSM_PROXY_OUTBOUND -p tcp --match multiport --dports 6379 -j RETURN
		iptables -t nat -A OSM_PROXY_OUTBOUND -d 10.1.0.0/16 -j OSM_PROXY_OUT_REDIRECT
		iptables -t nat -A OSM_PROXY_OUTBOUND -d 10.2.0.0/16 -j OSM_PROXY_OUT_REDIRECT
		iptables -t nat -A OSM_PROXY_OUTBOUND -j RETURN`,

	"istio/virtual-interfaces-and-ranges": `
		iptables -t nat -N ISTIO_INBOUND; iptables -t nat -N ISTIO_REDIRECT; iptables -t nat -N ISTIO_IN_REDIRECT; iptables -t nat -N ISTIO_OUTPUT
		iptables -t nat -I PREROUTING 1 -i k6t-vm -j RETURN
		iptables -t nat -I PREROUTING 1 -i k6t-vm2 -j RETURN
		iptables -t nat -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
		iptables -t nat -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
		iptables -t nat -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
		iptables -t nat -A PREROUTING -p tcp -j ISTIO_INBOUND
		for port in 15020 15021 15090; do iptables -t nat -A ISTIO_INBOUND -p tcp --dport $port -j RETURN; done
		iptables -t nat -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
		iptables -t nat -A OUTPUT -j ISTIO_OUTPUT
		for protocol in tcp udp; do iptables -t nat -A ISTIO_OUTPUT -p $protocol --dport 15020 -j RETURN; done
		iptables -t nat -A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
		for owner in uid gid; do
			iptables -t nat -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --$owner-owner 1337 -j ISTIO_IN_REDIRECT
			iptables -t nat -A ISTIO_OUTPUT -o lo -m owner ! --$owner-owner 1337 -j RETURN
			iptables -t nat -A ISTIO_OUTPUT -m owner --$owner-owner 1337 -j RETURN
		done
		iptables -t nat -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
		for range in 10.1.0.0/16 10.2.0.0/16; do
			iptables -t nat -I PREROUTING 1 -i k6t-vm -d $range -j ISTIO_REDIRECT
			iptables -t nat -I PREROUTING 1 -i k6t-vm2 -d $range -j ISTIO_REDIRECT
			iptables -t nat -A ISTIO_OUTPUT -d $range -j ISTIO_REDIRECT
		done`,
	"istio/everything-at-once": `
		for chain in ISTIO_OUTPUT_DNS ISTIO_INBOUND; do iptables -t raw -N $chain; done
		for chain in ISTIO_DROP ISTIO_INBOUND ISTIO_DIVERT ISTIO_TPROXY; do iptables -t mangle -N $chain; done
		for chain in ISTIO_INBOUND ISTIO_REDIRECT ISTIO_IN_REDIRECT ISTIO_OUTPUT ISTIO_OUTPUT_DNS; do iptables -t nat -N $chain; done
		for table in nat mangle; do
			iptables -t $table -A PREROUTING -i net1 -j RETURN
			iptables -t $table -A OUTPUT -o net1 -j RETURN
		done
		iptables -t nat -I PREROUTING 1 -i k6t-vm -j RETURN
		iptables -t mangle -A PREROUTING -m conntrack --ctstate INVALID -j ISTIO_DROP
		iptables -t mangle -A ISTIO_DROP -j DROP
		iptables -t nat -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
		iptables -t nat -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
		iptables -t nat -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
		iptables -t mangle -A ISTIO_DIVERT -j MARK --set-mark 1337
		iptables -t mangle -A ISTIO_DIVERT -j ACCEPT
		iptables -t mangle -A ISTIO_TPROXY ! -d 127.0.0.1/32 -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port 15006
		iptables -t mangle -A PREROUTING -p tcp -j ISTIO_INBOUND
		for port in 5432 15020 15021 15090; do iptables -t mangle -A ISTIO_INBOUND -p tcp --dport $port -j RETURN; done
		iptables -t mangle -A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT
		iptables -t mangle -A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY
		iptables -t nat -A OUTPUT -j ISTIO_OUTPUT
		for protocol in tcp udp; do iptables -t nat -A ISTIO_OUTPUT -p $protocol --dport 6379 -j RETURN; done
		iptables -t nat -A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
		iptables -t nat -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp -m multiport ! --dports 53,15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
		iptables -t nat -A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --uid-owner 1337 -j RETURN
		iptables -t nat -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
		iptables -t nat -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
		iptables -t nat -A ISTIO_OUTPUT -o lo -p tcp ! --dport 53 -m owner ! --gid-owner 1337 -j RETURN
		iptables -t nat -A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
		iptables -t nat -A ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS
		iptables -t nat -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
		iptables -t nat -A ISTIO_OUTPUT -d 10.1.0.0/16 -j RETURN
		iptables -t nat -A ISTIO_OUTPUT -p tcp --dport 443 -j ISTIO_REDIRECT
		iptables -t nat -A ISTIO_OUTPUT -j ISTIO_REDIRECT
		iptables -t nat -I PREROUTING 1 -i k6t-vm -j ISTIO_REDIRECT
		for protocol in tcp udp; do iptables -t nat -A ISTIO_OUTPUT_DNS -p $protocol --dport 53 -j REDIRECT --to-ports 15053; done
		iptables -t raw -A OUTPUT -j ISTIO_OUTPUT_DNS
		for owner in uid gid; do
			iptables -t raw -A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --$owner-owner 1337 -j CT --zone 1
			iptables -t raw -A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --$owner-owner 1337 -j CT --zone 2
		done
		iptables -t raw -A PREROUTING -j ISTIO_INBOUND
		iptables -t raw -A ISTIO_OUTPUT_DNS -p udp --dport 53 -j CT --zone 2
		iptables -t raw -A ISTIO_INBOUND -p udp --sport 53 -j CT --zone 1
		iptables -t mangle -A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark
		iptables -t mangle -A OUTPUT -p tcp -o lo -m mark --mark 1337 -j RETURN
		iptables -t mangle -A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --uid-owner 1337 -j MARK --set-mark 1338
		iptables -t mangle -A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --gid-owner 1337 -j MARK --set-mark 1338
		iptables -t mangle -A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark
		iptables -t mangle -I ISTIO_INBOUND 1 -p tcp -m mark --mark 1337 -j RETURN
		iptables -t mangle -I ISTIO_INBOUND 2 -p tcp -s 127.0.0.6/32 -i lo -j RETURN
		iptables -t mangle -I ISTIO_INBOUND 3 -p tcp -i lo -m mark ! --mark 1338 -j RETURN`,
}

const (
	osmV1Inbound = `
		for chain in OSM_PROXY_INBOUND OSM_PROXY_IN_REDIRECT OSM_PROXY_OUTBOUND OSM_PROXY_OUT_REDIRECT; do iptables -t nat -N $chain; done
		iptables -t nat -A OSM_PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-port 15003
		iptables -t nat -A PREROUTING -p tcp -j OSM_PROXY_INBOUND
		for port in 15010 15901 15902 15903 15904; do iptables -t nat -A OSM_PROXY_INBOUND -p tcp --dport $port -j RETURN; done
		iptables -t nat -A OSM_PROXY_INBOUND -p tcp -j OSM_PROXY_IN_REDIRECT`
	osmV1Outbound = `
		iptables -t nat -A OSM_PROXY_OUT_REDIRECT -p tcp -j REDIRECT --to-port 15001
		iptables -t nat -A OSM_PROXY_OUT_REDIRECT -p tcp --dport 15000 -j ACCEPT
		iptables -t nat -A OUTPUT -p tcp -j OSM_PROXY_OUTBOUND
		iptables -t nat -A OSM_PROXY_OUTBOUND -o lo ! -d 127.0.0.1/32 -m owner --uid-owner 1500 -j OSM_PROXY_IN_REDIRECT
		iptables -t nat -A OSM_PROXY_OUTBOUND -o lo -m owner ! --uid-owner 1500 -j RETURN
		iptables -t nat -A OSM_PROXY_OUTBOUND -m owner --uid-owner 1500 -j RETURN
		iptables -t nat -A OSM_PROXY_OUTBOUND -d 127.0.0.1/32 -j RETURN`
)

func TestTheMeshesOwnCommandsGiveTheSameTablesToTheByte(t *testing.T) {
	nettest.RequireNetns(t)
	found := 0
	for _, c := range testcase.Load(t, "../../..") {
		script, ok := commands[c.Name]
		if !ok {
			continue
		}
		found++
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			forBoth(t, func(t *testing.T, b *Programs) {
				decision, err := c.Decide(t)
				if err != nil {
					t.Fatal(err)
				}
				theirs, ours := nettest.StartNamespace(t, "theirs"), nettest.StartNamespace(t, "ours")
				shell(t, b, theirs, script)
				mustApply(t, b, ours, decision.Policy.Ruleset())
				if want, got := byTable(dump(t, b, theirs, rules.IPv4)), byTable(dump(t, b, ours, rules.IPv4)); got != want {
					t.Errorf("detour programs\n%sthe init container\n%s", got, want)
				}
			})
		})
	}
	if found != len(commands) {
		t.Errorf("%d of %d scenarios are there", found, len(commands))
	}
}
