//go:build kubeapi

package apitest

import (
	"testing"

	"github.com/detour-cni/detour/pkg/agentapi"
)

func TestCheckAndDelNeedNoAPIServer(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newScene(t, "osm/guide")
	s.wantAdded()
	s.closeAPI()

	s.wantCode("CHECK", 0)
	s.inPod("iptables-nft", "-t", "nat", "-D", "PROXY_OUTPUT", "-d", "1.1.1.1/32", "-j", "RETURN")
	s.wantCode("CHECK", agentapi.CodeDifferent, "PROXY_OUTPUT", "1.1.1.1/32")
	s.wantCode("DEL", 0)
	s.wantUntouched()
	s.wantCode("DEL", 0)
}

func TestDelOfAPodThatTheAPIServerHasForgotten(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newScene(t, "osm/guide")
	s.wantAdded()
	if _, err := kubernetes.admin.expect("DELETE", podsOf(s.namespace)+"/"+s.name+"?gracePeriodSeconds=0", nil, 200); err != nil {
		t.Fatal(err)
	}
	s.wantCode("CHECK", 0)
	s.wantCode("DEL", 0)
	s.wantUntouched()
}
