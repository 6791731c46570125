//go:build kubeapi

package apitest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// install applies an overlay and components into a namespace of the test's own and returns that. What is not in a namespace
// gets another name, so that installations keep apart.
func install(t *testing.T, overlay string, components ...string) string {
	t.Helper()
	return installEdited(t, func(object, string) {}, overlay, components...)
}

// installEdited is install after edit has changed each object for the namespace.
func installEdited(t *testing.T, edit func(o object, namespace string), overlay string, components ...string) string {
	t.Helper()
	namespace := newNamespace(t)
	for _, o := range render(t, customize(t, []string{overlay}, components, "namespace: "+namespace+"\n")) {
		if o.GetKind() == "Namespace" {
			continue
		}
		if strings.HasPrefix(o.GetKind(), "ValidatingAdmissionPolicy") {
			o.SetNamespace("") // kustomize takes them for objects of a namespace; kubectl knows better
		}
		edit(o, namespace)
		if o.GetNamespace() == "" {
			o.SetName(o.GetName() + "-" + namespace)
			for _, reference := range [][]string{{"roleRef", "name"}, {"spec", "policyName"}} {
				if name, ok, _ := unstructured.NestedString(o.Object, reference...); ok {
					if err := unstructured.SetNestedField(o.Object, name+"-"+namespace, reference...); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		mustApply(t, o)
	}
	return namespace
}

// agentToken returns a token of the installation's agent once its rights are in effect.
func agentToken(t *testing.T, namespace string) string {
	t.Helper()
	token, err := kubernetes.token(namespace, "detour-agent")
	if err != nil {
		t.Fatal(err)
	}
	if err := kubernetes.waitUntilAllowed(token, "/api/v1/pods"); err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTheAgentHasTheRightsInDeployAndThoseOfEverybody(t *testing.T) {
	t.Parallel()
	const pods, events = `get,list,watch [] [pods] []`, `create,patch [] [events] []`
	osm := []string{events, pods, `get,list,watch [config.openservicemesh.io] [meshconfigs] [osm-mesh-config]`}
	tests := []struct {
		overlay    string
		components []string
		want       []string
	}{
		{"overlays/osm", nil, osm},
		{"overlays/osm-v1", nil, osm},
		{"overlays/osm-edge", nil, osm},
		{"overlays/fsm", nil, []string{events, pods, `get,list,watch [config.flomesh.io] [meshconfigs] [fsm-mesh-config]`}},
		{"overlays/istio", nil, []string{events, `get,list,watch [] [configmaps] [istio]`, pods}},
		{"overlays/osm", []string{"components/ready-node"}, append([]string{`get,patch [] [nodes] []`}, osm...)},
		{"overlays/osm", []string{"components/repair-evict"}, append([]string{`create [] [pods/eviction] []`}, osm...)},
		{"overlays/osm", []string{"components/repair-in-place", "components/no-api-fallback"}, osm},
		{"base", []string{"components/uninstall"}, []string{events, pods}},
	}
	for _, tt := range tests {
		t.Run(strings.Join(append([]string{tt.overlay}, tt.components...), "+"), func(t *testing.T) {
			t.Parallel()
			namespace := install(t, tt.overlay, tt.components...)
			everybody, err := kubernetes.token(namespace, "default")
			if err != nil {
				t.Fatal(err)
			}
			others := rulesOf(t, everybody)
			want := slices.Sorted(slices.Values(tt.want))
			token := agentToken(t, namespace)
			var got []string
			for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); time.Sleep(pollTime) {
				got = slices.DeleteFunc(rulesOf(t, token), func(r string) bool { return slices.Contains(others, r) })
				if slices.Equal(got, want) {
					return
				}
			}
			t.Errorf("the agent may %q, want %q", got, want)
		})
	}
}

// answers makes requests that have no effect, but for the last ones of a table, and checks the codes.
func answers(t *testing.T, as *client, requests []request) {
	t.Helper()
	for _, r := range requests {
		contentType := contentTypes[r.method]
		if r.method == http.MethodPatch {
			contentType = mergePatch
		}
		code, answer, err := as.sendAs(contentType, r.method, r.path, r.body)
		if err != nil {
			t.Fatal(err)
		}
		if code != r.want {
			t.Errorf("%s %s: %d, want %d: %.300s", r.method, r.path, code, r.want, answer)
		}
	}
}

type request struct {
	method, path string
	body         any
	want         int
}

func TestWhatTheAgentIsAnswered(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	shop := newNamespace(t)
	token := agentToken(t, install(t, "overlays/osm"))
	configs := meshConfigsOf("osm-system")
	const one = "?fieldSelector=metadata.name%3Dosm-mesh-config"
	if err := kubernetes.waitUntilAllowed(token, configs+one); err != nil {
		t.Fatal(err)
	}
	pods := podsOf(shop)
	event := map[string]any{
		"apiVersion": "v1", "kind": "Event", "metadata": map[string]any{"namespace": shop, "name": "web.1"},
		"involvedObject": map[string]any{"kind": "Pod", "namespace": shop, "name": "web"}, "reason": "DetourRefused", "type": "Warning",
	}
	nothing := map[string]any{}
	watch := "&watch=true&timeoutSeconds=1"
	code, answer, err := kubernetes.as(token).send("GET", configs+"/osm-mesh-config", nil)
	if err != nil || code != http.StatusOK && code != http.StatusNotFound { // another test may have made it
		t.Errorf("GET osm-mesh-config: %d, %v: %.300s", code, err, answer)
	}
	answers(t, kubernetes.as(token), []request{
		{"GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode", nil, 200},
		{"GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode" + watch, nil, 200},
		{"GET", pods + "/gone", nil, 404},
		{"GET", configs + one, nil, 200},
		{"GET", configs + one + watch, nil, 200},
		{"GET", "/apis/config.openservicemesh.io", nil, 200},          // how the agent finds the served version
		{"GET", "/apis/config.openservicemesh.io/v1alpha2", nil, 200}, // likewise
		{"POST", "/api/v1/namespaces/" + shop + "/events", event, 201},
		{"PATCH", "/api/v1/namespaces/" + shop + "/events/web.1", map[string]any{"count": 2}, 200},

		{"GET", configs, nil, 403},
		{"GET", configs + "?fieldSelector=metadata.name%3Dother", nil, 403},
		{"PATCH", configs + "/osm-mesh-config", nothing, 403},
		{"GET", "/api/v1/namespaces/" + shop + "/events", nil, 403},
		{"DELETE", "/api/v1/namespaces/" + shop + "/events/web.1", nil, 403},
		{"POST", pods, nothing, 403},
		{"PATCH", pods + "/web", nothing, 403},
		{"DELETE", pods + "/web", nil, 403},
		{"POST", pods + "/web/eviction", nothing, 403},
		{"GET", pods + "/web/log", nil, 403},
		{"GET", pods + "/web/exec?command=id", nil, 403},
		{"GET", "/api/v1/nodes", nil, 403},
		{"GET", "/api/v1/nodes/node", nil, 403},
		{"PATCH", "/api/v1/nodes/node", nothing, 403},
		{"GET", "/api/v1/secrets", nil, 403},
		{"GET", "/api/v1/namespaces/osm-system/configmaps/istio", nil, 403},
		{"GET", "/api/v1/namespaces", nil, 403},
		{"POST", "/api/v1/namespaces/" + shop + "/serviceaccounts/default/token", nothing, 403},
	})
}

// nodeToken returns a token such as the kubelet asks for, of a pod of the agent's on the node.
func nodeToken(t *testing.T, namespace, node string) string {
	t.Helper()
	pod := mustApply(t, mustParse(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {namespace: %s, name: agent-%s}
spec: {nodeName: %s, serviceAccountName: detour-agent, containers: [{name: agent, image: detour}]}
`, namespace, node, node)))
	body, err := kubernetes.admin.expect(http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts/detour-agent/token", map[string]any{
		"apiVersion": "authentication.k8s.io/v1",
		"kind":       "TokenRequest",
		"spec": map[string]any{
			"expirationSeconds": 3600,
			"boundObjectRef":    map[string]any{"apiVersion": "v1", "kind": "Pod", "name": pod.GetName(), "uid": string(pod.GetUID())},
		},
	}, http.StatusCreated)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct{ Status struct{ Token string } }
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatal(err)
	}
	return answer.Status.Token
}

func TestWithTheEvictComponentTheAgentMayEvictAndNotDelete(t *testing.T) {
	t.Parallel()
	namespace := install(t, "overlays/osm", "components/repair-evict")
	shop := newNamespace(t)
	mustApply(t, mustParse(t, "{apiVersion: v1, kind: Pod, metadata: {namespace: "+shop+", name: web}, spec: {containers: [{name: app, image: app}]}}"))
	token := agentToken(t, namespace)
	eviction := map[string]any{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": map[string]any{"namespace": shop, "name": "web"}}
	path := podsOf(shop) + "/web"
	for deadline := time.Now().Add(settleTime); ; time.Sleep(pollTime) { // until the right is in effect
		code, answer, err := kubernetes.as(token).send(http.MethodPost, path+"/eviction?dryRun=All", eviction)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%d %s %v", code, answer, err)
		}
		if code == http.StatusCreated {
			break
		}
	}
	answers(t, kubernetes.as(token), []request{
		{"DELETE", path, nil, 403},
		{"POST", path + "/eviction", eviction, 201},
	})
}

// The token on the host is bound to the agent's pod and good until that is gone, not for its hour. Between an agent that is
// deleted and its successor, which brings a new one, a pod that starts gets 401 and is tried again by the kubelet.
func TestTheAgentsTokenEndsWithItsPod(t *testing.T) {
	t.Parallel()
	namespace := install(t, "overlays/osm")
	bound := kubernetes.as(nodeToken(t, namespace, "node-of-"+namespace))
	if err := bound.waitFor("/api/v1/pods", http.StatusOK); err != nil {
		t.Fatal(err)
	}
	path := podsOf(namespace) + "/agent-node-of-" + namespace
	if _, err := kubernetes.admin.expect(http.MethodDelete, path+"?gracePeriodSeconds=0", nil, http.StatusOK); err != nil {
		t.Fatal(err)
	}
	if err := bound.waitFor("/api/v1/pods", http.StatusUnauthorized); err != nil {
		t.Fatal(err)
	}
}
