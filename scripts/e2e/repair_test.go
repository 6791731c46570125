//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

// A pod that was started while detour was not in the chain runs unmeshed, until an agent that may programs it where it is:
// without iptables, of which the agent's image has none.
func TestAPodThatStartedWithoutDetourIsRepairedInPlace(t *testing.T) {
	mustBreak(t)
	installDetour(t)
	kubectl(t, "apply", "-k", "../../testdata/e2e/in-place")
	rollout(t)
	namespace := newNamespace(t, "in-place", restricted)

	thaw := freezeAgent(t)
	defer dropDetour(t)()
	apply(t, meshedPod(t, namespace, "web", nil, outsideAddr))
	waitReady(t, namespace, "web")
	ip := podIPs(t, namespace, "web")[0]
	wantDirectInbound := func(direct bool) { wantInbound(t, ip, 8080, direct) }
	wantDirectInbound(true)
	thaw()
	wantDetourInChain(t)
	wantDirectInbound(false)
	netns := `$(sed -e 's/.*"netns":"//' -e 's/".*//' /run/detour/attachments/detour-repair/*.json)`
	if table := shell(t, "nsenter --net="+netns+" nft list table inet detour"); !strings.Contains(table, "chain PROXY_INBOUND") {
		t.Errorf("the pod's table is %s", table)
	}
	kubectl(t, "apply", "-k", "../../testdata/e2e/detour")
	rollout(t)
	wantDirectInbound(false)
}
