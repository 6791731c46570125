//go:build kubeapi

package apitest

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/pod"
)

// createLongPod makes a meshed pod with more than a megabyte that no mesh reads.
func (s *agentScene) createLongPod(name string) object {
	s.t.Helper()
	return s.create(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {namespace: %s, name: %s}
spec:
  nodeName: %s
  containers: [{name: app, image: app, env: [{name: SHORT, value: "<"}, {name: LONG, value: "%s"}]}, {name: envoy, image: envoy}]
`, s.pods, name, s.node, strings.Repeat("x", 1_200_000)))
}

func TestTheAgentKeepsLittleOfLongPodsOfARealAPIServer(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newAgentScene(t)
	s.createConfig(6379)
	pods := map[string]object{}
	for i := range 8 {
		name := fmt.Sprint("long-", i)
		pods[name] = s.createLongPod(name)
	}
	s.run()
	pods["later"] = s.createLongPod("later")
	known := func(name string) func() bool {
		return func() bool {
			p := pods[name]
			answer := s.lookup(name, string(p.GetUID()))
			if answer.Error != "" || len(answer.Pod) > 1000 { // from the API server
				return false
			}
			facts, err := pod.Parse(answer.Pod)
			return err == nil && facts.Name == name && len(facts.Containers) == 2
		}
	}
	for name := range pods {
		s.eventually(name+" is in the cache", known(name))
	}
	// What the agent's memory is held to with tells of such bytes.
	body, err := kubernetes.admin.expect(http.MethodGet, podsOf(s.pods)+"/later", nil, http.StatusOK)
	if err != nil || !bytes.Contains(body, []byte(`"value":"\u003c"`)) {
		t.Errorf("%v; \"<\" is not written as six bytes", err)
	}
}
