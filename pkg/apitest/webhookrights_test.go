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

// Each right that the component gives is needed: without it something does not work that works with it.
func TestTheWebhookNeedsEachOfItsRights(t *testing.T) {
	t.Parallel()
	type rights struct{ secrets, mutating, validating, configs string }
	all := rights{"list, watch, update", "list, watch, patch", "list, watch, patch", "get, list, watch"}
	for name, tt := range map[string]struct {
		rights rights
		ready  string // what /readyz says for good
		logged string
	}{
		"update secrets":      {rights{"list, watch", all.mutating, all.validating, all.configs}, "certificate: write a new certificate: secrets", ""},
		"watch secrets":       {rights{"list, update", all.mutating, all.validating, all.configs}, "", "cannot watch resource \\\"secrets"},
		"patch mutating":      {rights{all.secrets, "list, watch", all.validating, all.configs}, "certificate: write the caBundle: mutatingwebhookconfigurations", ""},
		"watch mutating":      {rights{all.secrets, "list, patch", all.validating, all.configs}, "", "cannot watch resource \\\"mutating"},
		"patch validating":    {rights{all.secrets, all.mutating, "list, watch", all.configs}, "certificate: write the caBundle: validatingwebhookconfigurations", ""},
		"watch validating":    {rights{all.secrets, all.mutating, "list, patch", all.configs}, "", "cannot watch resource \\\"validating"},
		"watch configuration": {rights{all.secrets, all.mutating, all.validating, "list"}, "", "cannot watch resource \\\"meshconfigs"},
		"none":                {all, "ok", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newHookScene(t)
			s.setRules("Role", webhookAccount, fmt.Sprintf(`[{apiGroups: [""], resources: [secrets], resourceNames: [detour-webhook], verbs: [%s]}]`, tt.rights.secrets))
			s.setRules("ClusterRole", webhookAccount+"-"+s.namespace, fmt.Sprintf(
				`[{apiGroups: [admissionregistration.k8s.io], resources: [mutatingwebhookconfigurations], resourceNames: [%[1]s], verbs: [%[2]s]},`+
					`{apiGroups: [admissionregistration.k8s.io], resources: [validatingwebhookconfigurations], resourceNames: [%[1]s], verbs: [%[3]s]}]`,
				s.configuration(), tt.rights.mutating, tt.rights.validating))
			s.setRules("ClusterRole", "detour-meshconfig-"+s.namespace, fmt.Sprintf(
				`[{apiGroups: [config.openservicemesh.io], resources: [meshconfigs], resourceNames: [osm-mesh-config], verbs: [%s]}]`, tt.rights.configs))
			s.waitForRules(tt.rights.secrets, tt.rights.mutating, tt.rights.validating, tt.rights.configs)
			s.run(s.conf)
			s.eventually(fmt.Sprintf("/readyz says %q, the log %q", tt.ready, tt.logged), func() bool {
				return strings.HasPrefix(s.ready(s.conf), tt.ready) && strings.Contains(s.logs.String(), tt.logged)
			})
			if tt.ready == "ok" && strings.Contains(s.logs.String(), "forbidden") {
				t.Error("a right is missing")
			}
		})
	}
}

// waitForRules waits until the account's rules have these verbs.
func (s *hookScene) waitForRules(verbs ...string) {
	s.t.Helper()
	token, err := kubernetes.token(s.namespace, webhookAccount)
	if err != nil {
		s.t.Fatal(err)
	}
	s.eventually("the rights are in effect", func() bool {
		rules := strings.Join(rulesIn(s.t, token, s.namespace), "\n")
		resources := []string{"[secrets]", "[mutatingwebhookconfigurations]", "[validatingwebhookconfigurations]", "[meshconfigs]"}
		for i, resource := range resources {
			found := false
			for line := range strings.Lines(rules) {
				found = found || strings.Contains(line, resource) && strings.HasPrefix(line, strings.ReplaceAll(verbs[i], " ", "")+" ")
			}
			if !found {
				return false
			}
		}
		return true
	})
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
