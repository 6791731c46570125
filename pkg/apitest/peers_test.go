//go:build kubeapi && scale

package apitest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// peer is another CNI plugin's node agent and plugin: the requests that their sources make, by a stand-in.
type peer struct {
	name   string
	accept string   // of all its requests
	list   string   // at its start
	watch  string   // after that
	onAdd  []string // of each ADD, over a connection of its own
}

const onNode = "/api/v1/pods?fieldSelector=spec.nodeName%3DNODE"

var peers = []peer{
	{
		// cni/pkg/repair/repaircontroller.go: client-go's informer of the node's pods, in protobuf. cni/pkg/plugin/kubernetes.go: a get.
		name: "istio-cni", accept: "application/vnd.kubernetes.protobuf,application/json",
		list: onNode + "&limit=500&resourceVersion=0", watch: onNode + "&watch=true&allowWatchBookmarks=true",
		onAdd: []string{"/api/v1/namespaces/PODS/pods/NAME"},
	},
	{
		// cni-repair-controller/src/lib.rs: kube-rs' watcher, in JSON. cni-plugin/main.go: the pod, and the namespace for each annotation
		// that the pod does not have.
		name: "linkerd-cni", accept: "application/json",
		list:  onNode + "&labelSelector=linkerd.io%2Fcontrol-plane-ns&limit=500",
		watch: onNode + "&labelSelector=linkerd.io%2Fcontrol-plane-ns&watch=true&allowWatchBookmarks=true&timeoutSeconds=290",
		onAdd: []string{
			"/api/v1/namespaces/PODS/pods/NAME", "/api/v1/namespaces/PODS", "/api/v1/namespaces/PODS", "/api/v1/namespaces/PODS",
		},
	},
}

// comparePeers does the same work with the peers in place of the agents.
func (f *fleet) comparePeers() {
	f.Helper()
	for _, m := range f.nodes {
		m.stop()
	}
	for _, p := range peers {
		s := &standIn{fleet: f, peer: p}
		ctx, stop := context.WithCancel(f.Context())
		var watching sync.WaitGroup
		s.measure("start", 1, func() {
			f.each(len(f.nodes), func(i int) error { return s.begin(ctx, &watching, i) })
			f.settle()
		})
		s.measure("rollout: one pod replaced", 1, func() { f.rollOut(s.addOne) })
		stop()
		for _, m := range f.nodes {
			m.cut()
		}
		watching.Wait()
	}
}

// standIn makes a peer's requests.
type standIn struct {
	*fleet
	peer
	made atomic.Int64
}

func (s *standIn) measure(what string, share float64, do func()) {
	s.Helper()
	before := s.made.Load()
	s.fleet.measure(s.name+": "+what, share, do)
	fmt.Printf("the stand-in has made %.1f requests\n", float64(s.made.Load()-before)/share/float64(len(s.nodes)))
}

// transport returns a transport with no connection yet.
func (s *standIn) transport() *http.Transport {
	t := kubernetes.admin.http.Transport.(*http.Transport).Clone()
	t.ForceAttemptHTTP2 = true
	return t
}

func (s *standIn) get(ctx context.Context, t *http.Transport, node int, path string) (*http.Response, error) {
	s.made.Add(1)
	path = strings.ReplaceAll(strings.ReplaceAll(path, "NODE", s.nodes[node].name), "PODS", s.workload.namespace)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.nodes[node].address+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", s.accept)
	answer, err := t.RoundTrip(r)
	if err == nil && answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		err = errors.New(answer.Status)
	}
	return answer, err
}

// begin lists the node's pods and watches them until ctx ends.
func (s *standIn) begin(ctx context.Context, watching *sync.WaitGroup, node int) error {
	t := s.transport()
	answer, err := s.get(ctx, t, node, s.list)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, answer.Body)
	answer.Body.Close()
	if err != nil {
		return err
	}
	// Where the list ended only JSON says; now is as good.
	body, err := kubernetes.admin.expect(http.MethodGet, podsOf(s.workload.namespace)+"?limit=1", nil, http.StatusOK)
	if err != nil {
		return err
	}
	var list struct {
		Metadata struct{ ResourceVersion string }
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return err
	}
	answer, err = s.get(ctx, t, node, s.watch+"&resourceVersion="+list.Metadata.ResourceVersion)
	if err != nil {
		return err
	}
	watching.Go(func() {
		defer answer.Body.Close()
		io.Copy(io.Discard, answer.Body)
	})
	return nil
}

// addOne makes the plugin's requests.
func (s *standIn) addOne(p placed) error {
	t := s.transport()
	defer t.CloseIdleConnections()
	for _, path := range s.onAdd {
		answer, err := s.get(s.Context(), t, p.node, strings.ReplaceAll(path, "NAME", p.name))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
