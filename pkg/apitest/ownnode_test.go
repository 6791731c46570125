//go:build kubeapi

package apitest

import (
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent"
)

const (
	mergePatch = "application/merge-patch+json"
	jsonPatch  = "application/json-patch+json"
)

type fields = map[string]any

// ownNode is a node, and another one, of a cluster with components/ready-node.
type ownNode struct {
	t                    *testing.T
	namespace, own, path string
	other                string  // its path
	token                string  // of the node's agent
	agent                *client // with that token
}

var (
	notReady = fields{"key": "detour.io/not-ready", "effect": "NoSchedule"}
	evicting = fields{"key": "detour.io/not-ready", "effect": "NoExecute"}
	gpu      = fields{"key": "gpu", "effect": "NoSchedule"}
	unready  = fields{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"} // every new node has it
)

func newOwnNode(t *testing.T) *ownNode {
	t.Helper()
	namespace := install(t, "overlays/osm", "components/ready-node")
	n := &ownNode{t: t, namespace: namespace, own: "own-" + namespace, other: "/api/v1/nodes/other-" + namespace}
	n.path = "/api/v1/nodes/" + n.own
	for _, name := range []string{n.own, "other-" + namespace} {
		node := mustParse(t, "{apiVersion: v1, kind: Node, metadata: {name: "+name+", labels: {zone: a, detour.io/ready: 'true'}, annotations: {a: b}}}")
		node.Object["spec"] = taints(notReady, evicting, gpu)["spec"]
		mustApply(t, node)
	}
	n.token = nodeToken(t, namespace, n.own)
	n.agent = kubernetes.as(n.token)
	if err := n.agent.waitFor(n.path, http.StatusOK); err != nil {
		t.Fatal(err)
	}
	n.waitForPolicy()
	return n
}

// waitForPolicy waits until the policy is in effect.
func (n *ownNode) waitForPolicy() {
	n.t.Helper()
	for deadline := time.Now().Add(settleTime); ; time.Sleep(pollTime) {
		code, answer, err := n.agent.sendAs(mergePatch, http.MethodPatch, n.path+"?dryRun=All", spec("unschedulable", true))
		if err != nil || time.Now().After(deadline) {
			n.t.Fatalf("%d %s %v", code, answer, err)
		}
		if code != http.StatusOK {
			return
		}
	}
}

// labels are the node's. Nobody's are empty.
func (n *ownNode) labels() fields {
	n.t.Helper()
	body, err := kubernetes.admin.expect(http.MethodGet, n.path, nil, http.StatusOK)
	if err != nil {
		n.t.Fatal(err)
	}
	o, err := parseObject(body)
	if err != nil {
		n.t.Fatal(err)
	}
	labels, _ := o.Object["metadata"].(fields)["labels"].(fields)
	return labels
}

func metadata(field string, value any) fields { return fields{"metadata": fields{field: value}} }
func spec(field string, value any) fields     { return fields{"spec": fields{field: value}} }
func labels(pairs fields) fields              { return metadata("labels", pairs) }
func taints(list ...any) fields               { return spec("taints", append(list, unready)) }

func TestWithTheReadyNodeComponentTheAgentMayMarkItsOwnNode(t *testing.T) {
	t.Parallel()
	n := newOwnNode(t)
	own, other := n.path+"?dryRun=All", n.other+"?dryRun=All"
	owner := fields{"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "x"}
	ready := func(value any) fields { return labels(fields{"detour.io/ready": value}) }
	answers(t, n.agent, []request{
		{"PATCH", own, ready("true"), 200},
		{"PATCH", own, ready(nil), 200},
		{"PATCH", own, taints(evicting, gpu), 200},
		{"PATCH", own, taints(gpu, evicting), 200}, // their order says nothing

		{"PATCH", own, ready("yes"), 422},
		{"PATCH", own, ready(""), 422},
		{"PATCH", own, labels(fields{"zone": "b"}), 422},
		{"PATCH", own, labels(fields{"zone": nil}), 422},
		{"PATCH", own, labels(fields{"role": "db"}), 422},
		{"PATCH", own, labels(fields{"detour.io/ready": "true", "role": "db"}), 422},
		{"PATCH", own, labels(fields{"detour.io/ready": nil, "zone": nil}), 422},
		{"PATCH", own, labels(fields{"detour.io/ready-2": "true"}), 422},
		{"PATCH", own, labels(fields{"detour.io/other": "true"}), 422},
		{"PATCH", own, metadata("labels", nil), 422},
		{"PATCH", own, taints(notReady, evicting), 422},
		{"PATCH", own, taints(notReady, gpu), 422}, // of the same key, but another effect
		{"PATCH", own, spec("taints", nil), 422},
		{"PATCH", own, taints(notReady, evicting, gpu, fields{"key": "mine", "effect": "NoSchedule"}), 422},
		{"PATCH", own, taints(evicting, gpu, fields{"key": "detour.io/not-ready", "effect": "NoSchedule", "value": "x"}), 422},
		{"PATCH", own, metadata("annotations", fields{"a": "c"}), 422},
		{"PATCH", own, metadata("annotations", fields{"a": nil}), 422},
		{"PATCH", own, metadata("finalizers", []string{"example.com/x"}), 422},
		{"PATCH", own, metadata("ownerReferences", []any{owner}), 422},
		{"PATCH", own, spec("unschedulable", true), 422},
		{"PATCH", own, spec("podCIDRs", []string{"10.0.0.0/24"}), 422},
		{"PATCH", own, fields{"spec": fields{"podCIDR": "10.0.0.0/24", "podCIDRs": []string{"10.0.0.0/24"}}}, 422},
		{"PATCH", own, spec("providerID", "x://y"), 422},
		{"PATCH", n.path + "/status?dryRun=All", ready("true"), 403},

		{"PATCH", other, ready(nil), 422},
		{"PATCH", other, taints(evicting, gpu), 422},
		{"GET", "/api/v1/nodes", nil, 403},
		{"PUT", own, fields{}, 403},
		{"DELETE", own, nil, 403},
		{"POST", "/api/v1/nodes?dryRun=All", fields{}, 403},

		{"PATCH", n.path, ready(nil), 200},
		{"PATCH", n.path, ready("true"), 200}, // on a node without the label
	})
	// A patch may not create a node either.
	if _, err := n.agent.expect(http.MethodPatch, "/api/v1/nodes/new-"+n.namespace+"?fieldManager=x&dryRun=All",
		fields{"apiVersion": "v1", "kind": "Node", "metadata": fields{"name": "new-" + n.namespace}}, http.StatusForbidden); err != nil {
		t.Error(err)
	}
	// A token that is of no pod, as one that was made by hand, may nothing.
	answers(t, kubernetes.as(agentToken(t, n.namespace)), []request{{"PATCH", own, ready(nil), 422}})
	// Everybody else may change nodes as before.
	if _, err := kubernetes.admin.expect(http.MethodPatch, n.other+"?fieldManager=apitest",
		fields{"apiVersion": "v1", "kind": "Node", "metadata": fields{"name": "other-" + n.namespace, "labels": fields{"role": "db"}}}, http.StatusOK); err != nil {
		t.Error(err)
	}
}

// The agent's own code, with no more rights than the component gives it.
func TestUninstallingTakesTheLabelOffUnderThePolicy(t *testing.T) {
	t.Parallel()
	n := newOwnNode(t)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(kubeconfigOf(kubernetes.server, n.token)), 0o600); err != nil {
		t.Fatal(err)
	}
	unmark := func() error {
		return agent.Unmark(t.Context(), kubeconfig, n.own, slog.New(slog.NewTextHandler(t.Output(), nil)), func() error { return nil })
	}
	web := mustApply(t, mustParse(t, `
apiVersion: v1
kind: Pod
metadata: {namespace: `+n.namespace+`, name: web}
spec: {nodeName: `+n.own+`, nodeSelector: {detour.io/ready: 'true'}, containers: [{name: app, image: app}]}
`))
	ended := make(chan error, 1)
	go func() { ended <- unmark() }()
	for deadline := time.Now().Add(settleTime); n.labels()["detour.io/ready"] != nil; time.Sleep(pollTime) {
		if time.Now().After(deadline) {
			t.Fatal("the label stays")
		}
	}
	select {
	case err := <-ended:
		t.Fatalf("it did not wait for the pod: %v", err)
	case <-time.After(7 * time.Second): // longer than it waits if there is no pod
	}
	if _, err := kubernetes.admin.expect(http.MethodDelete, podsOf(n.namespace)+"/"+web.GetName()+"?gracePeriodSeconds=0", nil, http.StatusOK); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := n.labels(); !maps.Equal(got, fields{"zone": "a"}) {
		t.Errorf("the labels are %v", got)
	}
}

// Without a right to read the node, the component was never there. Without the right to patch it, the label may be on.
func TestUninstallingWithoutARight(t *testing.T) {
	t.Parallel()
	for verb, want := range map[string]string{"get": "", "patch": "take the label detour.io/ready off node"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			n := newOwnNode(t)
			role := "/apis/rbac.authorization.k8s.io/v1/clusterroles/detour-agent-ready-node-" + n.namespace
			left := map[string]string{"get": "patch", "patch": "get"}[verb]
			code, answer, err := kubernetes.admin.sendAs(jsonPatch, http.MethodPatch, role,
				[]any{fields{"op": "replace", "path": "/rules/0/verbs", "value": []string{left}}})
			if err != nil || code != http.StatusOK {
				t.Fatalf("%d %s %v", code, answer, err)
			}
			for deadline := time.Now().Add(settleTime); ; time.Sleep(pollTime) { // until the right is gone
				method := strings.ToUpper(verb)
				if code, _, err = n.agent.sendAs(mergePatch, method, n.path+"?dryRun=All", fields{}); code == http.StatusForbidden {
					break
				}
				if err != nil || time.Now().After(deadline) {
					t.Fatalf("%d %v", code, err)
				}
			}
			kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
			if err := os.WriteFile(kubeconfig, []byte(kubeconfigOf(kubernetes.server, n.token)), 0o600); err != nil {
				t.Fatal(err)
			}
			err = agent.Unmark(t.Context(), kubeconfig, n.own, slog.New(slog.NewTextHandler(t.Output(), nil)), func() error { return nil })
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("got %v, want %q", err, want)
			}
			if n.labels()["detour.io/ready"] != "true" {
				t.Error("the label is gone all the same")
			}
		})
	}
}
