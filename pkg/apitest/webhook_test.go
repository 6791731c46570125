//go:build kubeapi

package apitest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/webhook"
	"github.com/detour-cni/detour/pkg/webhook/certificate"
)

// hookScene is an installation of components/webhook whose server is in this process, on loopback. Its namespaces have labels of their own
// instead of detour.io's, so that installations keep apart.
type hookScene struct {
	t         *testing.T
	namespace string // of the installation
	mesh      string // of the MeshConfig
	addr      string // of the server
	conf      webhook.Config
	logs      logBuffer
}

// logBuffer keeps what is logged.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

const webhookAccount = "detour-webhook"

// newHookScene installs the component and prepares a server for it.
func newHookScene(t *testing.T) *hookScene {
	t.Helper()
	s := &hookScene{t: t, addr: freeAddress(t)}
	s.namespace = installEdited(t, s.atHome, "overlays/osm", "components/webhook")
	s.mesh = newNamespace(t)
	dialect, _ := mesh.Find("osm")
	dialect.Config.Namespace = s.mesh
	s.conf = webhook.Config{
		Options: decision.Options{Dialect: dialect, ExcludeNamespaces: decision.DefaultExclusions(dialect)},
		Certificate: certificate.Options{
			Host: "127.0.0.1", Namespace: s.namespace, Secret: webhookAccount, Configuration: s.configuration(),
		},
		Addr: s.addr, MetricsAddr: freeAddress(t), Kubeconfig: s.kubeconfig(kubernetes.server),
		Log: slog.New(slog.NewTextHandler(&s.logs, nil)),
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the webhook's log:\n%s", s.logs.String())
		}
		for _, resource := range []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"} {
			kubernetes.admin.send(http.MethodDelete, registration+resource+"/"+s.configuration(), nil)
		}
	})
	return s
}

const registration = "/apis/admissionregistration.k8s.io/v1/"

func freeAddress(t *testing.T) string {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

func (s *hookScene) configuration() string { return "webhook.detour.io-" + s.namespace }

// label is what a namespace has here for detour.io/NAME=VALUE.
func (s *hookScene) label(name, value string) string {
	return s.namespace + ".test/" + name + "=" + value
}

// atHome makes the component's objects those of a server on loopback.
func (s *hookScene) atHome(o object, namespace string) {
	s.namespace = namespace
	if o.GetKind() == "ClusterRole" && o.GetName() == webhookAccount {
		rules := o.Object["rules"].([]any)
		rules[0].(map[string]any)["resourceNames"] = []any{s.configuration()}
	}
	hooks, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
	for _, hook := range hooks {
		h := hook.(map[string]any)
		path, _, _ := unstructured.NestedString(h, "clientConfig", "service", "path")
		h["clientConfig"] = map[string]any{"url": "https://" + s.addr + path}
		expressions, _, _ := unstructured.NestedSlice(h, "namespaceSelector", "matchExpressions")
		for _, e := range expressions {
			key := e.(map[string]any)
			key["key"] = strings.Replace(key["key"].(string), "detour.io/", namespace+".test/", 1)
		}
		if expressions == nil { // of mesh configurations: only this installation's
			h["namespaceSelector"] = map[string]any{"matchLabels": map[string]any{namespace + ".test/mesh": "true"}}
			continue
		}
		h["namespaceSelector"] = map[string]any{"matchExpressions": expressions}
	}
	if hooks != nil {
		o.Object["webhooks"] = hooks
	}
}

// kubeconfig is that of the webhook's account, for an API server at the address.
func (s *hookScene) kubeconfig(server string) string {
	s.t.Helper()
	token, err := kubernetes.token(s.namespace, webhookAccount)
	if err != nil {
		s.t.Fatal(err)
	}
	one := "?fieldSelector=metadata.name%3D"
	if err := kubernetes.waitUntilAllowed(token, "/api/v1/namespaces/"+s.namespace+"/secrets"+one+webhookAccount,
		registration+"mutatingwebhookconfigurations"+one+s.configuration(), meshConfigsOf("any")+one+meshConfigName); err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "%s", certificate-authority: "%s"}}]
users: [{name: webhook, user: {token: "%s"}}]
contexts: [{name: here, context: {cluster: here, user: webhook}}]
current-context: here
`, server, kubernetes.file("ca.crt"), token)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// run starts a server until stop, or the test's end.
func (s *hookScene) run(conf webhook.Config) (stop func()) {
	s.t.Helper()
	server, err := webhook.New(conf)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Run(ctx); err != nil {
			s.t.Errorf("Run: %v", err)
		}
	})
	stop = func() {
		cancel()
		running.Wait()
	}
	s.t.Cleanup(stop)
	return stop
}

// start starts the server and waits until the API server goes by it.
func (s *hookScene) start() {
	s.t.Helper()
	s.run(s.conf)
	s.waitUntilReady(s.conf)
	s.waitUntilCalled()
}

// ready returns what a server's /readyz says.
func (s *hookScene) ready(conf webhook.Config) string {
	resp, err := http.Get("http://" + conf.MetricsAddr + "/readyz")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	body.ReadFrom(resp.Body)
	return strings.TrimSpace(body.String())
}

func (s *hookScene) waitUntilReady(conf webhook.Config) {
	s.t.Helper()
	s.eventually("the webhook is ready", func() bool { return s.ready(conf) == "ok" })
}

func (s *hookScene) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(pollTime) {
		if time.Now().After(deadline) {
			s.t.Fatalf("it did not happen: %s; %s", what, s.ready(s.conf))
		}
	}
}

// waitUntilCalled waits until each of the paths for pods is called and trusted: the API server reads the configurations in its own time.
func (s *hookScene) waitUntilCalled() {
	s.t.Helper()
	for name, want := range map[string]func(object, string) bool{
		"remove-init":    func(p object, _ string) bool { return p.Object != nil && shape(p) == "| app envoy" },
		"native-sidecar": func(p object, _ string) bool { return p.Object != nil && shape(p) == "envoy* | app" },
		"restrict-sidecar": func(p object, _ string) bool {
			return p.Object != nil && strings.Contains(string(mustJSON(s.t, p.Object)), "RuntimeDefault")
		},
	} {
		namespace, n := newNamespace(s.t, s.label(name, "enabled")), 0
		s.eventually(name+" is called", func() bool {
			n++
			return want(tryPod(s.t, namespace, fmt.Sprintf("probe-%d", n), injectedByOSM))
		})
	}
	namespace, n := newNamespace(s.t, s.label("check", "enforce")), 0
	s.eventually("check/enforce is called", func() bool {
		n++
		_, refused := tryAnnotatedPod(s.t, namespace, fmt.Sprintf("probe-%d", n), badExclusion)
		return strings.Contains(refused, "a port is 1 to 65535")
	})
}

// A pod as osm's injector leaves it.
const injectedByOSM = "initContainers: [{name: osm-init, image: init, " + osmInitContext + "}], " +
	"containers: [{name: app, image: app}, {name: envoy, image: envoy, securityContext: {runAsUser: 1500}}]"

const badExclusion = `{openservicemesh.io/inbound-port-exclusion-list: "0"}`

// tryAnnotatedPod is tryPod for an injected pod with these annotations.
func tryAnnotatedPod(t *testing.T, namespace, name, annotations string) (object, string) {
	t.Helper()
	pod := mustParse(t, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: %s, annotations: %s}, spec: {%s}}",
		namespace, name, annotations, strings.Replace(injectedByOSM, "name: osm-init", "name: other", 1)))
	code, answer, err := kubernetes.admin.send(http.MethodPost, podsOf(namespace), pod.Object)
	if err != nil {
		t.Fatal(err)
	}
	if code != http.StatusCreated {
		return object{}, fmt.Sprintf("%d %s", code, answer)
	}
	stored, err := parseObject(answer)
	if err != nil {
		t.Fatal(err)
	}
	return stored, ""
}

// apply runs kubectl apply on a manifest and returns what it prints, warnings and errors included.
func (s *hookScene) apply(manifest string) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o600); err != nil {
		s.t.Fatal(err)
	}
	out, err := kubectl(s.t, "apply", "-f", path)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

func TestTheWebhookChangesInjectedPods(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newHookScene(t)
	s.start()
	remove, native := s.label("remove-init", "enabled"), s.label("native-sidecar", "enabled")
	for _, tt := range []struct {
		labels []string
		want   string
	}{
		{nil, "osm-init | app envoy"},
		{[]string{s.label("remove-init", "disabled")}, "osm-init | app envoy"},
		{[]string{remove}, "| app envoy"},
		{[]string{native}, "envoy* | app"},
		{[]string{remove, native, s.label("restrict-sidecar", "enabled")}, "envoy* | app"},
	} {
		pod := createPod(t, newNamespace(t, tt.labels...), "web", injectedByOSM)
		selector, _, _ := unstructured.NestedStringMap(pod.Object, "spec", "nodeSelector")
		if got := shape(pod); got != tt.want || (selector["detour.io/ready"] == "true") == strings.Contains(got, "osm-init") {
			t.Errorf("%q: %s on nodes %v, want %s", tt.labels, got, selector, tt.want)
		}
		// What the mesh's own webhook injects, whatever the order.
		if got := shape(createPod(t, admitting(t, append(tt.labels, "inject=osm")...), "web", app)); got != tt.want {
			t.Errorf("%q, injected by a webhook: %s, want %s", tt.labels, got, tt.want)
		}
	}
	if got := shape(createPod(t, newNamespace(t, remove, native), "web", app)); got != "| app" {
		t.Errorf("a pod that is not injected: %s", got)
	}
}

// The aim: a namespace that enforces restricted takes the pods of a mesh that always injects a privileged container.
func TestTheWebhooksPodsInARestrictedNamespace(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newHookScene(t)
	s.start()
	const spec = "securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}, " +
		"containers: [{name: app, image: app, securityContext: {runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]"
	const enforce = "pod-security.kubernetes.io/enforce=restricted"
	if _, refused := tryPod(t, admitting(t, "inject=osm", enforce), "web", spec); !strings.Contains(refused, "NET_ADMIN") {
		t.Errorf("without the webhook: %q", refused)
	}
	namespace := admitting(t, "inject=osm", enforce, s.label("native-sidecar", "enabled"), s.label("restrict-sidecar", "enabled"))
	if pod, refused := tryPod(t, namespace, "web", spec); refused != "" || shape(pod) != "envoy* | app" {
		t.Errorf("%s %s", shape(pod), refused)
	}
}

// What ADD would refuse is refused at kubectl apply with ADD's sentence, what it would warn of is a warning.
func TestKubectlSaysWhatADDWouldSay(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newHookScene(t)
	mustApply(t, mustParse(t, "{apiVersion: config.openservicemesh.io/v1alpha2, kind: MeshConfig, metadata: {namespace: "+s.mesh+", name: osm-mesh-config}, spec: {}}"))
	s.start()
	manifest := func(namespace, annotations string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: web, annotations: %s}, spec: {%s}}", namespace, annotations,
			strings.Replace(injectedByOSM, "name: osm-init", "name: other", 1))
	}
	const sentence = `openservicemesh.io/inbound-port-exclusion-list: entry 1 "0": a port is 1 to 65535`
	for _, tt := range []struct {
		check string
		want  []string
	}{
		{"off", []string{"pod/web created"}},
		{"warn", []string{"Warning: it will not start: pod shop/web: " + sentence}},
		{"enforce", []string{"admission webhook", "denied the request: pod shop/web: " + sentence}},
	} {
		namespace := newNamespace(t, s.label("check", tt.check))
		out := s.apply(manifest(namespace, badExclusion))
		for _, words := range tt.want {
			if !strings.Contains(strings.ReplaceAll(out, namespace, "shop"), words) {
				t.Errorf("%s: kubectl does not say %q but %s", tt.check, words, out)
			}
		}
		good := s.apply(strings.Replace(manifest(namespace, "{}"), "name: web", "name: good", 1))
		if strings.TrimSpace(good) != "pod/good created" {
			t.Errorf("%s: a good pod: %s", tt.check, good)
		}
	}
	namespace := newNamespace(t, s.label("check", "enforce"))
	workload := fmt.Sprintf("{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: %s, name: web}, spec: {selector: {matchLabels: {app: web}}, "+
		"template: {metadata: {labels: {app: web}, annotations: %s}, spec: {%s}}}}", namespace, badExclusion, app)
	if out := s.apply(workload); !strings.Contains(out, "Warning: Deployment web: its pods would not start") || !strings.Contains(out, sentence) {
		t.Errorf("kubectl says of a template %s", out)
	}
}

func TestAMeshConfigThatADDCantReadIsRefused(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newHookScene(t)
	s.start()
	mustApply(t, mustParse(t, "{apiVersion: v1, kind: Namespace, metadata: {name: "+s.mesh+", labels: {"+s.namespace+".test/mesh: \"true\"}}}"))
	config := func(traffic string) string {
		return "{apiVersion: config.openservicemesh.io/v1alpha2, kind: MeshConfig, metadata: {namespace: " + s.mesh + ", name: osm-mesh-config}, spec: {traffic: " + traffic + "}}"
	}
	if out := s.apply(config("{}")); !strings.Contains(out, "created") {
		t.Fatalf("an empty one: %s", out)
	}
	s.eventually("a malformed one is denied", func() bool {
		return strings.Contains(s.apply(config(`{outboundIPRangeExclusionList: ["10.0.0.0/33"]}`)), `denied the request: MeshConfig `+s.mesh+`/osm-mesh-config: spec.traffic.outboundIPRangeExclusionList: entry 1`)
	})
	if out := s.apply(config("{outboundPortExclusionList: [6379]}")); !strings.Contains(out, "running pods keep their rules until they are restarted") {
		t.Errorf("a change: %s", out)
	}
}

// A controller leaves the name to the API server, which gives the pod one before it is checked.
func TestAPodWithAGeneratedNameIsChecked(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newHookScene(t)
	s.start()
	namespace := newNamespace(t, s.label("check", "enforce"))
	for annotations, want := range map[string]string{"{}": "", badExclusion: "pod " + namespace + "/web-"} {
		pod := mustParse(t, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, generateName: web-, annotations: %s}, spec: {%s}}",
			namespace, annotations, strings.Replace(injectedByOSM, "name: osm-init", "name: other", 1)))
		code, answer, err := kubernetes.admin.send(http.MethodPost, podsOf(namespace), pod.Object)
		if err != nil || (code == http.StatusCreated) != (want == "") || !strings.Contains(string(answer), want) {
			t.Errorf("%d %s %v, want %q", code, answer, err, want)
		}
	}
}

// Whatever a pod has, the answer comes.
func TestAPodWithAHundredInitContainers(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newHookScene(t)
	s.start()
	var inits []string
	for i := range 100 {
		inits = append(inits, fmt.Sprintf("{name: init-%d, image: app, env: [{name: LONG, value: %s}]}", i, strings.Repeat("x", 10_000)))
	}
	many := "initContainers: [" + strings.Join(inits, ", ") + ", {name: osm-init, image: init, " + osmInitContext + "}], " +
		"containers: [{name: app, image: app}, {name: envoy, image: envoy, securityContext: {runAsUser: 1500}}]"
	pod, refused := tryPod(t, newNamespace(t, s.label("native-sidecar", "enabled"), s.label("check", "enforce")), "web", many)
	if refused != "" {
		t.Fatalf("%.500s", refused)
	}
	words := strings.Fields(shape(pod))
	if len(words) != 103 || words[0] != "envoy*" || words[1] != "init-0" || words[100] != "init-99" || slices.Contains(words, "osm-init") {
		t.Errorf("%q", words)
	}
}
