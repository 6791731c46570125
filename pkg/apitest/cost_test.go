//go:build kubeapi

package apitest

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// What the agents of a cluster ask the API server grows with its nodes, not with its pods: each agent asks for its own node's pods
// once, hears of changes by its watches, and answers every ADD from its cache.
func TestAnAgentAsksOnceForItsOwnNode(t *testing.T) {
	t.Parallel()
	const nodes, pods = 12, 2
	f := newFleet(t, nodes, pods)
	crowded, program := nodes-1, nodes-2
	if err := f.fill(crowded, 20*pods); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i, m := range f.nodes {
		if i != program {
			f.run(m)
		}
	}
	f.startProgram(f.nodes[program], buildAgent(t))
	f.await(time.Now(), "it has its pods", func(m *member) bool { return f.knows(m, 6379) })
	f.await(time.Now(), "the node is marked", func(m *member) bool {
		node, err := kubernetes.admin.expect(http.MethodGet, "/api/v1/nodes/"+m.name, nil, http.StatusOK)
		return err == nil && bytes.Contains(node, []byte(`"detour.io/ready":"true"`))
	})
	f.settle()
	f.checkStart(f.asked(began), crowded)

	ready := time.Now()
	f.checkBytes(crowded)
	f.each(nodes, func(i int) error {
		for _, p := range f.pods[i] {
			if err := f.add(p); err != nil {
				return err
			}
		}
		return nil
	})
	f.setMeshConfig(7000)
	f.await(time.Now(), "it has the MeshConfig", func(m *member) bool { return f.knows(m, 7000) })
	f.rollOut(f.record)
	time.Sleep(time.Until(ready.Add(35 * time.Second))) // longer than from one search for unprogrammed pods to the next
	f.checkRest(f.asked(ready), time.Since(ready))
}

// checkStart checks that all agents have asked the same, but for what depends on who was faster.
func (f *fleet) checkStart(all [][]string, crowded int) {
	f.Helper()
	const most = 14
	for i, requests := range all {
		slices.Sort(requests)
		requests = slices.DeleteFunc(requests, func(r string) bool { // readiness, a lookup before there is a cache, the label
			return strings.Contains(r, "/namespaces/PODS/pods/") || strings.Contains(r, "/detour-status") ||
				strings.HasSuffix(r, "/meshconfigs/osm-mesh-config") || strings.HasSuffix(r, "/nodes/NODE")
		})
		all[i] = requests
		if len(requests) > most {
			f.Errorf("node %d: %d requests to start, want at most %d: %q", i, len(requests), most, requests)
		}
		if !slices.Equal(requests, all[0]) {
			f.Errorf("node %d (%d has many pods) asks %q and node 0 %q", i, crowded, requests, all[0])
		}
		for _, r := range requests {
			if strings.Contains(r, "/pods") && !strings.Contains(r, "fieldSelector=spec.nodeName%3DNODE") {
				f.Errorf("node %d asks for more than its own pods: %s", i, r)
			}
		}
	}
}

// checkBytes checks that a node's agent has not received other nodes' pods.
func (f *fleet) checkBytes(crowded int) {
	f.Helper()
	const each, pod = 60_000, 13_000 // bytes; among the former are some TLS handshakes
	for i, m := range f.nodes {
		if most := int64(each + pod*len(f.pods[i])); m.down.Load() > most {
			f.Errorf("node %d (%d has many pods) received %d bytes, want at most %d", i, crowded, m.down.Load(), most)
		}
	}
}

// checkRest checks that the agents have only renewed their watches and looked at their nodes, as rarely as they should.
func (f *fleet) checkRest(all [][]string, passed time.Duration) {
	f.Helper()
	const renewal, look = 5 * time.Minute, 5 * time.Minute / 2 // the least that may be between two
	for i, requests := range all {
		watches, looks := 0, 0
		for _, r := range requests {
			switch {
			case strings.HasPrefix(r, "watch ") && !strings.Contains(r, "sendInitialEvents"):
				watches++
			case r == "get /api/v1/nodes/NODE":
				looks++
			default:
				f.Errorf("node %d, which has all it needs: %s", i, r)
			}
		}
		if watches > 2*int(passed/renewal) || looks > 1+int(passed/look) {
			f.Errorf("node %d in %s: %q", i, passed, requests)
		}
	}
}
