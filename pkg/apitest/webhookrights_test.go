//go:build kubeapi

package apitest

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTheWebhookHasTheRightsInDeployAndNoMore(t *testing.T) {
	t.Parallel()
	const own, hooks = `list,watch,update [] [secrets] [detour-webhook]`, `list,watch,patch [admissionregistration.k8s.io] [mutatingwebhookconfigurations validatingwebhookconfigurations] [webhook.detour.io]`
	for overlay, configs := range map[string][]string{
		"overlays/osm": {`get,list,watch [config.openservicemesh.io] [meshconfigs] [osm-mesh-config]`},
		"overlays/fsm": {`get,list,watch [config.flomesh.io] [meshconfigs] [fsm-mesh-config]`},
		// The second is for istio's namespace, which here is the installation's.
		"overlays/istio": {`get,list,watch [] [configmaps] [istio]`, `get,list,watch [] [configmaps] []`},
	} {
		t.Run(overlay, func(t *testing.T) {
			t.Parallel()
			namespace := installEdited(t, func(o object, _ string) {
				if strings.HasSuffix(o.GetKind(), "WebhookConfiguration") {
					o.Object["webhooks"] = []any{} // nobody listens
				}
			}, overlay, "components/webhook")
			everybody, err := kubernetes.token(namespace, "default")
			if err != nil {
				t.Fatal(err)
			}
			token, err := kubernetes.token(namespace, webhookAccount)
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Sorted(slices.Values(append(configs, own, hooks)))
			var got []string
			for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); time.Sleep(pollTime) {
				others := rulesOf(t, everybody)
				got = slices.DeleteFunc(rulesIn(t, token, namespace), func(r string) bool { return slices.Contains(others, r) })
				if slices.Equal(got, want) {
					return
				}
			}
			t.Errorf("the webhook may %q, want %q", got, want)
		})
	}
}

// webhooksRights are the webhook's, and what /readyz says for good without each of them.
var webhooksRights = []struct {
	right
	ready     string
	oldServer bool // one that can't list as a stream
}{
	{right{"Role detour-webhook", "list", "", "secrets", "detour-webhook"}, "certificate: the API server has not sent Secret", true},
	{right{"Role detour-webhook", "watch", "", "secrets", "detour-webhook"}, "", false},
	{right{"Role detour-webhook", "update", "", "secrets", "detour-webhook"}, "certificate: write a new certificate: secrets", false},
	{mutatingRight("list"), "certificate: the API server has not sent the mutating", true},
	{mutatingRight("watch"), "", false},
	{mutatingRight("patch"), "certificate: write the caBundle: mutatingwebhookconfigurations", false},
	{validatingRight("list"), "certificate: the API server has not sent the validating", true},
	{validatingRight("watch"), "", false},
	{validatingRight("patch"), "certificate: write the caBundle: validatingwebhookconfigurations", false},
	{right{"ClusterRole detour-meshconfig", "list", "config.openservicemesh.io", "meshconfigs", "osm-mesh-config"}, "", true},
	{right{"ClusterRole detour-meshconfig", "watch", "config.openservicemesh.io", "meshconfigs", "osm-mesh-config"}, "", false},
}

func mutatingRight(verb string) right {
	return right{"ClusterRole detour-webhook", verb, "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "webhook.detour.io"}
}

func validatingRight(verb string) right {
	return right{"ClusterRole detour-webhook", verb, "admissionregistration.k8s.io", "validatingwebhookconfigurations", "webhook.detour.io"}
}

func TestTheWebhookNeedsEachOfItsRights(t *testing.T) {
	t.Parallel()
	for _, tt := range webhooksRights {
		t.Run(fmt.Sprint(tt.right, tt.oldServer), func(t *testing.T) {
			t.Parallel()
			s := newHookSceneWithout(t, tt.right)
			if tt.oldServer {
				s.conf.Kubeconfig = s.kubeconfig(withoutStreams(t))
			}
			s.run(s.conf)
			s.eventually("it says what is missing", func() bool {
				ready := s.ready(s.conf)
				return strings.HasPrefix(ready, tt.ready) && tt.isMissedIn(s.logs.String()+ready)
			})
		})
	}
}

func TestTheWebhookNeedsNoOtherRight(t *testing.T) {
	t.Parallel()
	for _, oldServer := range []bool{false, true} {
		t.Run(fmt.Sprint(oldServer), func(t *testing.T) {
			t.Parallel()
			s := newHookScene(t)
			if oldServer {
				s.conf.Kubeconfig = s.kubeconfig(withoutStreams(t))
			}
			s.start()
			if denied := kubernetes.denied(t, "system:serviceaccount:"+s.namespace+":"+webhookAccount); denied != nil {
				t.Errorf("it was refused %q", denied)
			}
		})
	}
}

// A webhook that is down: pods of labelled namespaces wait for it, and those of detour itself do not.
func TestWithoutTheWebhook(t *testing.T) {
	t.Parallel()
	s := newHookScene(t)
	labelled := newNamespace(t, s.label("remove-init", "enabled"), s.label("check", "enforce"))
	s.eventually("nobody answers", func() bool {
		out, _ := kubectlApplies(t, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: web}, spec: {%s}}", labelled, app))
		return strings.Contains(out, `failed calling webhook "remove-init.detour.io"`) && strings.Contains(out, "connection refused")
	})
	for _, namespace := range []string{newNamespace(t), newNamespace(t, s.label("check", "warn"))} {
		if out, _ := kubectlApplies(t, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: web}, spec: {%s}}", namespace, app)); !strings.HasPrefix(out, "pod/web created") {
			t.Errorf("kubectl says %s", out)
		}
	}
	workload := fmt.Sprintf("{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: %s, name: web}, spec: {selector: {matchLabels: {app: web}}, "+
		"template: {metadata: {labels: {app: web}}, spec: {%s}}}}", labelled, app)
	if out, _ := kubectlApplies(t, workload); !strings.HasPrefix(out, "deployment.apps/web created") {
		t.Errorf("kubectl says of a Deployment %s", out)
	}
}

// The namespaces that the webhook must never keep pods from, whatever their labels.
func TestTheWebhookLeavesTheNamespacesAloneThatItNeeds(t *testing.T) {
	t.Parallel()
	for _, o := range render(t, customize(t, []string{"overlays/osm"}, []string{"components/webhook"}, "")) {
		hooks, _ := o.Object["webhooks"].([]any)
		for _, hook := range hooks {
			h := hook.(map[string]any)
			if h["failurePolicy"] != "Fail" {
				continue
			}
			rules, selector := string(mustJSON(t, h["rules"])), string(mustJSON(t, h["namespaceSelector"]))
			if rules != `[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["pods"],"scope":"Namespaced"}]` {
				t.Errorf("%s fails closed for %s", h["name"], rules)
			}
			for _, part := range []string{
				`{"key":"kubernetes.io/metadata.name","operator":"NotIn","values":["kube-system","detour-system","osm-system","fsm-system","istio-system"]}`,
				`{"key":"detour.io/`,
			} {
				if !strings.Contains(selector, part) {
					t.Errorf("%s: %s lacks %s", h["name"], selector, part)
				}
			}
		}
		if o.GetKind() == "MutatingWebhookConfiguration" {
			for _, mesh := range []string{"osm-webhook-osm", "fsm-webhook-fsm", "istio-sidecar-injector", "istio-revision-tag-default"} {
				if o.GetName() < mesh {
					t.Errorf("%s is called before %s", o.GetName(), mesh)
				}
			}
		}
	}
}

// slowly passes connections on to the API server, each piece of data after a delay.
func (s *hookScene) slowly(delay time.Duration) (server string) {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	copySlowly := func(to, from net.Conn) {
		defer to.Close()
		data := make([]byte, 32<<10)
		for {
			n, err := from.Read(data)
			time.Sleep(delay)
			if _, failed := to.Write(data[:n]); failed != nil || err != nil {
				return
			}
		}
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			other, err := net.Dial("tcp", strings.TrimPrefix(kubernetes.server, "https://"))
			if err != nil {
				conn.Close()
				continue
			}
			go copySlowly(other, conn)
			go copySlowly(conn, other)
		}
	}()
	return "https://" + l.Addr().String()
}

// The webhook asks the API server beforehand: a slow one delays its start, and no review.
func TestBehindASlowAPIServer(t *testing.T) {
	t.Parallel()
	s := newHookScene(t)
	s.conf.Kubeconfig = s.kubeconfig(s.slowly(700 * time.Millisecond))
	s.start()
	namespace := newNamespace(t, s.label("remove-init", "enabled"), s.label("check", "enforce"))
	began := time.Now()
	for i := range 5 {
		if got := shape(createPod(t, namespace, fmt.Sprintf("web-%d", i), injectedByOSM)); got != "| app envoy" {
			t.Errorf("%s", got)
		}
	}
	t.Logf("5 pods in %s", time.Since(began))
}
