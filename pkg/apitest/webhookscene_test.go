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
	rights    []right // of the webhook
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
func newHookScene(t *testing.T) *hookScene { t.Helper(); return newHookSceneWithout(t, right{}) }

// newHookSceneWithout is newHookScene with a right taken away.
func newHookSceneWithout(t *testing.T, without right) *hookScene {
	t.Helper()
	serveMeshConfigs(t)
	s := &hookScene{t: t, addr: freeAddress(t)}
	s.namespace = installEdited(t, func(o object, namespace string) {
		takeAway(t, o, without)
		s.atHome(o, namespace)
		s.rights = append(s.rights, rightsOf(t, o)...)
	}, "overlays/osm", "components/webhook")
	s.rights = slices.DeleteFunc(s.rights, func(r right) bool { return r.role == "ClusterRole detour-agent" })
	s.mesh = newNamespace(t, s.label("mesh", "true"))
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
		for _, rule := range o.Object["rules"].([]any) {
			rule.(map[string]any)["resourceNames"] = []any{s.configuration()}
		}
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
	waitForRights(s.t, token, s.namespace, s.rights)
	path := filepath.Join(s.t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, []byte(kubeconfigOf(server, token)), 0o600); err != nil {
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
		_, refused := postPod(s.t, namespace, annotatedPod(namespace, fmt.Sprintf("probe-%d", n), badExclusion))
		return strings.Contains(refused, "a port is 1 to 65535")
	})
}

// Pods as osm's injector leaves them, and as they are without its init container.
const (
	injectedByOSM = "initContainers: [{name: osm-init, image: init, " + osmInitContext + "}], " + withoutInit
	withoutInit   = "containers: [{name: app, image: app}, {name: envoy, image: envoy, securityContext: {runAsUser: 1500}}]"
)

// annotatedPod is a pod without its init container.
func annotatedPod(namespace, name, annotations string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: %s, annotations: %s}, spec: {%s}}", namespace, name, annotations, withoutInit)
}

const badExclusion = `{openservicemesh.io/inbound-port-exclusion-list: "0"}`
