package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
)

const (
	daemonSetPath = "/apis/apps/v1/namespaces/detour-system/daemonsets/detour-agent"
	webhookPath   = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/webhook.detour.io"
)

// nodesScene is a cluster whose agents are to uninstall detour.
type nodesScene struct {
	*agenttest.Server
	nodes Nodes
}

func newNodesScene(t *testing.T) nodesScene {
	t.Helper()
	s := agenttest.NewServer(t)
	s.Served = []string{"v1"}
	s.Refuse["DELETE "+webhookPath] = agenttest.Refusal(http.StatusNotFound, "NotFound")
	return nodesScene{s, Nodes{
		Kubeconfig: s.Kubeconfig(t), DeleteFirst: []string{webhookPath}, Namespace: "detour-system", Name: "detour-agent",
		Patch: []byte(`[{"op":"replace","path":"/spec","value":"uninstall"}]`), Timeout: time.Minute, Pause: time.Millisecond,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}}
}

// daemonSet is one whose pods run a command, on three nodes of which so many have a pod of this template that is available.
func (s nodesScene) daemonSet(command string, generation, observed, updated, available int) {
	template := agenttest.Fields{"spec": agenttest.Fields{"containers": []agenttest.Fields{{"args": []string{command}}}}}
	s.Put(daemonSetPath, agenttest.Fields{
		"metadata": agenttest.Fields{"uid": "uid-of-the-daemonset", "generation": generation},
		"spec":     agenttest.Fields{"template": template},
		"status": agenttest.Fields{
			"observedGeneration": observed, "desiredNumberScheduled": 3, "updatedNumberScheduled": updated, "numberAvailable": available,
		},
	})
}

// pods answers with the pods of the namespace.
func (s nodesScene) pods(pods ...agenttest.Fields) {
	s.Refuse["GET /api/v1/namespaces/detour-system/pods"] = func(w http.ResponseWriter, _ *http.Request) {
		agenttest.Reply(w, http.StatusOK, agenttest.Fields{"items": pods})
	}
}

func agentPodOn(node, command, ready, owner string) agenttest.Fields {
	return agenttest.Fields{
		"metadata": agenttest.Fields{"name": "of-" + node, "ownerReferences": []agenttest.Fields{{"uid": owner}}},
		"spec":     agenttest.Fields{"nodeName": node, "containers": []agenttest.Fields{{"args": []string{command}}}},
		"status":   agenttest.Fields{"conditions": []agenttest.Fields{{"type": "Ready", "status": ready}}},
	}
}

// The webhook goes, then the DaemonSet is patched once, and then all nodes are waited for, also if the controller has not seen
// the patch yet and its numbers are still the agents'.
func TestUninstallWaitsForEveryNode(t *testing.T) {
	t.Parallel()
	s := newNodesScene(t)
	s.daemonSet("run", 1, 1, 3, 3)
	s.Refuse["DELETE "+webhookPath] = func(w http.ResponseWriter, r *http.Request) {
		s.Update(func() { s.Refuse["DELETE "+webhookPath] = agenttest.Refusal(http.StatusNotFound, "NotFound") })
		s.Accept(w, r)
	}
	s.Refuse["PATCH "+daemonSetPath] = func(w http.ResponseWriter, r *http.Request) {
		s.daemonSet("uninstall", 2, 1, 3, 3)
		s.Accept(w, r)
	}
	done := make(chan error, 1)
	go func() { done <- s.nodes.Uninstall(t.Context()) }()
	agenttest.Eventually(t, "the DaemonSet is patched", func() bool { return len(s.Written("PATCH", daemonSetPath)) > 0 })
	for _, status := range [][4]int{{2, 1, 3, 3}, {2, 2, 0, 0}, {2, 2, 3, 2}, {2, 2, 2, 3}} {
		s.daemonSet("uninstall", status[0], status[1], status[2], status[3])
		before := s.Count("GET " + daemonSetPath)
		agenttest.Eventually(t, "it looks again", func() bool { return s.Count("GET "+daemonSetPath) > before+2 })
		select {
		case err := <-done:
			t.Fatalf("it did not wait with status %v: %v", status, err)
		default:
		}
	}
	s.daemonSet("uninstall", 2, 2, 3, 3)
	if err := <-done; err != nil {
		t.Error(err)
	}
	requests := s.Requests()
	deleted, patched := slices.Index(requests, "DELETE "+webhookPath), slices.Index(requests, "PATCH "+daemonSetPath)
	if deleted < 0 || deleted > patched || s.Count("PATCH "+daemonSetPath) != 1 || s.Count("DELETE "+webhookPath) != 2 {
		t.Errorf("the requests are %q", requests)
	}
}

func TestUninstallOfUninstallingNodesPatchesNothing(t *testing.T) {
	t.Parallel()
	s := newNodesScene(t)
	s.Refuse["DELETE "+webhookPath] = agenttest.Refusal(http.StatusNotFound, "NotFound")
	s.daemonSet("uninstall", 2, 2, 3, 3)
	if err := s.nodes.Uninstall(t.Context()); err != nil || len(s.Written("PATCH", daemonSetPath)) > 0 {
		t.Errorf("%v, %v", err, s.Requests())
	}
}

func TestUninstallWithoutADaemonSetIsDone(t *testing.T) {
	t.Parallel()
	s := newNodesScene(t)
	if err := s.nodes.Uninstall(t.Context()); err != nil {
		t.Error(err)
	}
}

// While the webhook can't be deleted, the agents stay.
func TestUninstallTriesAgain(t *testing.T) {
	t.Parallel()
	s := newNodesScene(t)
	s.daemonSet("run", 1, 1, 3, 3)
	s.Refuse["DELETE "+webhookPath] = agenttest.Refusal(http.StatusServiceUnavailable, "ServiceUnavailable")
	done := make(chan error, 1)
	go func() { done <- s.nodes.Uninstall(t.Context()) }()
	agenttest.Eventually(t, "it tries to delete the webhook again", func() bool { return s.Count("DELETE "+webhookPath) > 3 })
	if s.Count("PATCH "+daemonSetPath) > 0 {
		t.Error("the DaemonSet is patched while the webhook is there")
	}
	s.daemonSet("uninstall", 2, 2, 3, 3)
	s.Update(func() { s.Refuse["DELETE "+webhookPath] = agenttest.Refusal(http.StatusNotFound, "NotFound") })
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestUninstallNamesTheNodesThatAreNotDone(t *testing.T) {
	t.Parallel()
	s := newNodesScene(t)
	s.nodes.Timeout = 100 * time.Millisecond
	s.daemonSet("uninstall", 2, 2, 2, 1)
	const ours = "uid-of-the-daemonset"
	s.pods(
		agentPodOn("done", "uninstall", "True", ours),
		agentPodOn("waiting", "uninstall", "False", ours),
		agentPodOn("old", "run", "True", ours),
		agentPodOn("another", "serve", "False", "uid-of-another"),
		agentPodOn("", "uninstall", "False", ours),
	)
	err := s.nodes.Uninstall(t.Context())
	const want = "after 100ms these may still start pods with it: old, the one of the unscheduled pod of-, waiting; "
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v\nwant %s", err, want)
	}
}

// A patch that does not fit is an error at once; any other at the end.
func TestUninstallSaysWhyItFailed(t *testing.T) {
	t.Parallel()
	for code, reason := range map[int]string{http.StatusUnprocessableEntity: "Invalid", http.StatusForbidden: "Forbidden"} {
		s := newNodesScene(t)
		s.nodes.Timeout, s.nodes.Pause = 2*time.Second, 200*time.Millisecond // within the client's limit of requests
		s.daemonSet("run", 1, 1, 3, 3)
		s.Refuse["PATCH "+daemonSetPath] = agenttest.Refusal(code, reason)
		err := s.nodes.Uninstall(t.Context())
		if err == nil || !strings.Contains(err.Error(), "PATCH "+daemonSetPath) {
			t.Errorf("%s: %v", reason, err)
		}
		if again := s.Count("PATCH "+daemonSetPath) > 1; again != (code == http.StatusForbidden) {
			t.Errorf("%s: tried again: %t", reason, again)
		}
	}
}

func TestUninstallCanBeInterrupted(t *testing.T) {
	t.Parallel()
	s := newNodesScene(t)
	s.daemonSet("uninstall", 2, 2, 0, 0)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := s.nodes.Uninstall(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
