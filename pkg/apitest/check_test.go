//go:build kubeapi

package apitest

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/detour-cni/detour/pkg/admission"
	"github.com/detour-cni/detour/pkg/agent/cache"
	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

const (
	checkWarn    = "detour.io/check=warn"
	checkEnforce = "detour.io/check=enforce"
)

// checker answers the API server's requests by pkg/admission's checks. Its mesh has its configuration in a namespace of its own.
type checker struct {
	options decision.Options
	configs *cache.OnDemand

	mu   sync.Mutex
	seen map[string]*admissionv1.AdmissionRequest // the last one of a namespace
}

// meshOfChecks is the namespace of the mesh.
const meshOfChecks = "mesh-of-checks"

func newChecker() (*checker, error) {
	d, _ := mesh.Find("osm")
	d.Config.Namespace = meshOfChecks
	config := &rest.Config{Host: kubernetes.server, TLSClientConfig: rest.TLSClientConfig{
		CAFile: kubernetes.file("ca.crt"), CertFile: kubernetes.file("admin.crt"), KeyFile: kubernetes.file("admin.key"),
	}}
	client, err := cache.NewClient(config, d.Config)
	if err != nil {
		return nil, err
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, err
	}
	server, err := url.Parse(kubernetes.server)
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	configs := cache.NewOnDemand(client, kube.NewAPIOver(transport, server, "the test"), cache.Options{Dialect: d, Recheck: time.Second, Log: log})
	go configs.Run(context.Background()) // as long as the process
	return &checker{options: decision.Options{Dialect: d}, configs: configs, seen: map[string]*admissionv1.AdmissionRequest{}}, nil
}

func (c *checker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || review.Request == nil {
		http.Error(w, fmt.Sprint("no review: ", err), http.StatusBadRequest)
		return
	}
	request := review.Request
	c.mu.Lock()
	c.seen[request.Namespace] = request
	c.mu.Unlock()
	v, err := c.check(r.Context(), r.URL.Path, request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	review.Request, review.Response = nil, &admissionv1.AdmissionResponse{UID: request.UID, Allowed: v.Denial == "", Warnings: v.Warnings}
	if v.Denial != "" {
		review.Response.Result = &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Message: v.Denial}
	}
	_ = json.NewEncoder(w).Encode(review)
}

func (c *checker) check(ctx context.Context, path string, r *admissionv1.AdmissionRequest) (v admission.Verdict, err error) {
	data := r.Object.Raw
	switch path {
	case "/check/config":
		return admission.CheckConfig(c.options.Dialect, r.OldObject.Raw, r.Object.Raw), nil
	case "/check/template":
		if data, err = admission.PodOf(data); data == nil {
			return v, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime/2)
	defer cancel()
	config, err := c.configs.ConfigOf(ctx, c.options.Dialect.Config)
	if err != nil {
		return v, err
	}
	in := decision.Input{ID: pod.ID{Namespace: r.Namespace, Name: r.Name}, Pod: data, Config: config.JSON, ConfigAbsent: config.Absent}
	switch path {
	case "/check/template":
		return admission.CheckTemplate(c.options, in), nil
	case "/check/warn":
		v = admission.CheckPod(c.options, in)
		if v.Denial != "" {
			v = admission.Verdict{Warnings: []string{v.Denial}}
		}
		return v, nil
	}
	return admission.CheckPod(c.options, in), nil
}

// request is the last one about an object of the namespace.
func (c *checker) request(namespace string) *admissionv1.AdmissionRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[namespace]
}

// checks installs the validating webhooks, once, and waits until the API server goes by them.
var checks = sync.OnceValues(func() (*checker, error) {
	c, err := newChecker()
	if err != nil {
		return nil, err
	}
	server := httptest.NewTLSServer(c)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	hook := func(path, label string, values []string, groups []string, resources ...string) map[string]any {
		return map[string]any{
			"name": strings.Trim(strings.ReplaceAll(path, "/", "-"), "-") + ".detour.test", "admissionReviewVersions": []string{"v1"},
			"sideEffects": "None", "failurePolicy": "Fail", "clientConfig": map[string]any{"url": server.URL + path, "caBundle": ca},
			"namespaceSelector": map[string]any{"matchExpressions": []any{map[string]any{"key": label, "operator": "In", "values": values}}},
			"rules": []any{map[string]any{
				"apiGroups": groups, "apiVersions": []string{"*"}, "resources": resources, "operations": []string{"CREATE", "UPDATE", "DELETE"},
			}},
		}
	}
	data, err := json.Marshal(map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": map[string]any{"name": "checks"},
		"webhooks": []any{
			hook("/check/warn", admission.CheckLabel, []string{"warn"}, []string{""}, "pods"),
			hook("/check/enforce", admission.CheckLabel, []string{"enforce"}, []string{""}, "pods"),
			hook("/check/template", admission.CheckLabel, []string{"warn", "enforce"}, []string{"apps", "batch"}, "*"),
			hook("/check/config", "kubernetes.io/metadata.name", []string{meshOfChecks}, []string{c.options.Dialect.Config.Group}, "meshconfigs"),
		},
	})
	if err != nil {
		return nil, err
	}
	var o object
	if err := o.UnmarshalJSON(data); err != nil {
		return nil, err
	}
	_, err = kubernetes.admin.apply(o)
	return c, err
})

// checking makes a namespace with the labels and waits until its pods are checked.
func checking(t *testing.T, labels ...string) (*checker, string) {
	t.Helper()
	serveMeshConfigs(t)
	c, err := checks()
	if err != nil {
		t.Fatal(err)
	}
	namespace := admitting(t, labels...)
	for deadline := time.Now().Add(settleTime); c.request(namespace) == nil; time.Sleep(pollTime) {
		if time.Now().After(deadline) {
			t.Fatalf("after %s, pods of %s are not checked", settleTime, namespace)
		}
		tryPod(t, namespace, fmt.Sprintf("probe-%d", scenes.Add(1)), app)
	}
	return c, namespace
}

// kubectlSays runs kubectl with standard input and returns all that it prints, and whether it failed.
func kubectlSays(t *testing.T, stdin string, args ...string) (text string, failed bool) {
	t.Helper()
	path, err := kubectlPath()
	if err != nil {
		t.Fatal(err)
	}
	conf, err := kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, append([]string{"--cache-dir=" + filepath.Join(t.TempDir(), "cache")}, args...)...)
	cmd.Env, cmd.Stdin = append(os.Environ(), "KUBECONFIG="+conf), strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	t.Logf("$ kubectl %s\n%s", strings.Join(args, " "), out)
	return string(bytes.TrimSpace(out)), err != nil
}

// The whole way: the mesh injects, the policy takes the init container out, the check sees what ADD would see.
func TestKubectlRunPrintsWhatADDWouldSay(t *testing.T) {
	t.Parallel()
	_, namespace := checking(t, "inject=osm", removeInit, checkEnforce)
	run := func(name, exclude string) (string, bool) {
		return kubectlSays(t, "", "run", name, "-n", namespace, "--image=app", "--annotations=openservicemesh.io/outbound-port-exclusion-list="+exclude)
	}
	sentence := "pod " + namespace + `/web: openservicemesh.io/outbound-port-exclusion-list: entry 2 "redis": a port is 1 to 65535`
	if got, failed := run("web", "6379,redis"); !failed || !strings.HasSuffix(got, "denied the request: "+sentence) {
		t.Errorf("%s\nwant %s", got, sentence)
	}
	if got, failed := run("web", "6379"); failed || !strings.HasSuffix(got, "pod/web created") || strings.Contains(got, sentence) {
		t.Error(got)
	}
	// Without the init container's removal the pod programs itself, and ADD leaves it alone.
	_, own := checking(t, "inject=osm", checkEnforce)
	if got, failed := kubectlSays(t, "", "run", "web", "-n", own, "--image=app", "--annotations=openservicemesh.io/outbound-port-exclusion-list=redis"); failed {
		t.Error(got)
	}
}

// One pod, applied in a namespace that is off, that warns and that enforces, and then started as a runtime starts it.
func TestKubectlApplyAndADDSayTheSame(t *testing.T) {
	t.Parallel()
	for _, scenario := range []string{"osm/refuse-port-zero", "osm/refuse-uid-of-the-proxy", "osm/refuse-injection-value"} {
		t.Run(scenario, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, scenario)
			added := s.call("ADD")
			if added.Code != agentapi.CodeRefused {
				t.Fatalf("ADD: %+v", added.Error)
			}
			for label, enforced := range map[string]bool{checkWarn: false, checkEnforce: true} {
				_, namespace := checking(t, label)
				manifest := strings.Replace(s.scenario.Section("pod.yaml"), "namespace: shop", "namespace: "+namespace, 1)
				want := strings.Replace(added.Msg, s.namespace, namespace, 1)
				got, failed := kubectlSays(t, manifest, "apply", "-f", "-")
				if failed != enforced || !slices.ContainsFunc(strings.Split(got, "\n"), func(line string) bool {
					return line == "Warning: "+want || strings.HasSuffix(line, "denied the request: "+want)
				}) {
					t.Errorf("%s: %s\nADD says %s", label, got, want)
				}
			}
		})
	}
}

func TestKubectlPrintsWhatADDWarnsOf(t *testing.T) {
	t.Parallel()
	_, namespace := checking(t, checkEnforce)
	const spec = "containers: [{name: metrics, image: app, ports: [{containerPort: 15010}]}, {name: envoy, image: envoy, securityContext: {runAsUser: 1500}}]"
	manifest := func(name string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: %s}, spec: {%s}}", namespace, name, spec)
	}
	got, failed := kubectlSays(t, manifest("web"), "apply", "-f", "-")
	if want := `Warning: container "metrics" declares port 15010, which is the proxy's: only one of them can listen`; failed || !strings.Contains(got, want) {
		t.Errorf("%s\nwant %s", got, want)
	}
	// The API server is what says what a request has.
	generated := strings.Replace(manifest(""), "name: }", "generateName: web-}", 1)
	if got, failed := kubectlSays(t, generated, "create", "-f", "-"); failed || !strings.Contains(got, "15010") {
		t.Error(got)
	}
}

// CheckPod takes the pod of a request as it is. That must have what ADD gets from the API server.
func TestTheAPIServerSendsWholePods(t *testing.T) {
	t.Parallel()
	c, namespace := checking(t, checkWarn)
	for name, metadata := range map[string]string{"named": "name: web", "to be named": "generateName: web-"} {
		manifest := fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, %s}, spec: {%s}}", namespace, metadata, app)
		if got, failed := kubectlSays(t, manifest, "create", "-f", "-"); failed {
			t.Fatal(got)
		}
		p, err := pod.Parse(c.request(namespace).Object.Raw)
		if err != nil || p.Namespace != namespace || !strings.HasPrefix(p.Name, "web") || p.UID == "" {
			t.Errorf("%s: %v %+v", name, err, p)
		}
	}
}

func TestKubectlWarnsOfATemplate(t *testing.T) {
	t.Parallel()
	_, namespace := checking(t, checkEnforce)
	const template = "metadata: {labels: {app: web}, annotations: {openservicemesh.io/outbound-port-exclusion-list: redis}}, spec: {containers: [{name: app, image: app}]}"
	const once = "metadata: {annotations: {openservicemesh.io/outbound-port-exclusion-list: redis}}, spec: {restartPolicy: Never, containers: [{name: app, image: app}]}"
	const selector = "selector: {matchLabels: {app: web}}"
	for kind, w := range map[string]struct{ group, spec string }{
		"Deployment":  {"apps/v1", selector + ", template: {" + template + "}"},
		"ReplicaSet":  {"apps/v1", selector + ", template: {" + template + "}"},
		"DaemonSet":   {"apps/v1", selector + ", template: {" + template + "}"},
		"StatefulSet": {"apps/v1", "serviceName: web, " + selector + ", template: {" + template + "}"},
		"Job":         {"batch/v1", "template: {" + once + "}"},
		"CronJob":     {"batch/v1", "schedule: '* * * * *', jobTemplate: {spec: {template: {" + once + "}}}"},
	} {
		manifest := fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {namespace: %s, name: web}, spec: {%s}}", w.group, kind, namespace, w.spec)
		want := "Warning: " + kind + ` web: its pods would not start if the mesh injects its sidecar: openservicemesh.io/outbound-port-exclusion-list: entry 1 "redis": a port is 1 to 65535` + "\n"
		if got, failed := kubectlSays(t, manifest, "apply", "-f", "-"); failed || !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "web created") {
			t.Errorf("%s: %s", kind, got)
		}
		if got, failed := kubectlSays(t, strings.NewReplacer("redis", "'6379'", "name: web}", "name: good}").Replace(manifest), "apply", "-f", "-"); failed || strings.Contains(got, "Warning") {
			t.Errorf("%s: %s", kind, got)
		}
	}
}

// Not parallel: the mesh's configuration is the same for all pods.
func TestKubectlAppliesAMeshConfig(t *testing.T) {
	if err := kubernetes.serve("v1alpha1", "v1alpha2"); err != nil {
		t.Fatal(err)
	}
	c, err := checks()
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, mustParse(t, "{apiVersion: v1, kind: Namespace, metadata: {name: "+meshOfChecks+"}}"))
	apply := func(version, traffic string) (string, bool) {
		return kubectlSays(t, fmt.Sprintf("{apiVersion: config.openservicemesh.io/%s, kind: MeshConfig, metadata: {namespace: %s, name: %s}, spec: {traffic: {%s}}}",
			version, meshOfChecks, meshConfigName, traffic), "apply", "-f", "-")
	}
	ref := c.options.Dialect.Config.String()
	for deadline := time.Now().Add(settleTime); c.request(meshOfChecks) == nil; time.Sleep(pollTime) {
		if got, failed := apply("v1alpha2", "enableEgress: false"); failed || time.Now().After(deadline) {
			t.Fatal("a MeshConfig is not checked: ", got)
		}
	}
	t.Cleanup(func() {
		got, failed := kubectlSays(t, "", "delete", "meshconfig", meshConfigName, "-n", meshOfChecks)
		if want := ref + ": spec.traffic.outboundPortExclusionList: running pods keep"; failed || !strings.Contains(got, want) {
			t.Errorf("deleted: %s\nwant %s", got, want)
		}
	})
	for _, step := range []struct{ name, version, traffic, want string }{
		{"that ADD could not read", "v1alpha2", "outboundIPRangeExclusionList: [10.0.0.0]", `denied the request: ` + ref + `: spec.traffic.outboundIPRangeExclusionList: entry 1 "10.0.0.0": a range is an address and a prefix length, such as 10.0.0.0/8 or fd00::/8`},
		{"that matters", "v1alpha2", "outboundPortExclusionList: [6379]", "Warning: " + ref + ": spec.traffic.outboundPortExclusionList: running pods keep their rules until they are restarted (kubectl rollout restart); `kubectl detour verify` shows which"},
		{"that does not matter", "v1alpha2", "outboundPortExclusionList: [6379], enableEgress: true", ""},
		{"in another version", "v1alpha1", "outboundPortExclusionList: [6380]", "Warning: " + ref + ": spec.traffic.outboundPortExclusionList: running pods"},
	} {
		got, failed := apply(step.version, step.traffic)
		if failed != strings.HasPrefix(step.want, "denied") || !strings.Contains(got, step.want) || step.want == "" && strings.Contains(got, "Warning") {
			t.Errorf("a change %s: %s\nwant %s", step.name, got, step.want)
		}
	}
}
