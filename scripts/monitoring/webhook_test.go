package monitoring

import (
	"crypto/tls"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"k8s.io/client-go/util/cert"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/webhook"
	"github.com/detour-cni/detour/pkg/webhook/certificate"
)

// serveWebhook runs a webhook until the test's end and has it answer reviews with each verdict. It returns the address of its metrics.
func serveWebhook(t *testing.T) string {
	t.Helper()
	const host = "detour-webhook.detour-system.svc"
	crt, key, err := cert.GenerateSelfSignedCertKey(host, nil, nil)
	must(t, err)
	s := agenttest.NewServer(t)
	s.Put(agenttest.ConfigPath, agenttest.Config())
	s.Put("/api/v1/namespaces/detour-system/secrets/detour-webhook", agenttest.Fields{
		"kind": "Secret", "apiVersion": "v1", "metadata": agenttest.Fields{"namespace": "detour-system", "name": "detour-webhook"},
		"data": agenttest.Fields{"tls.crt": crt, "tls.key": key},
	})
	osm, _ := mesh.Find("osm")
	conf := webhook.Config{
		Options: decision.Options{Dialect: osm}, Kubeconfig: s.Kubeconfig(t), Addr: freeAddress(t), MetricsAddr: freeAddress(t),
		Certificate: certificate.Options{Host: host, Namespace: "detour-system", Secret: "detour-webhook", External: true},
		Log:         slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	server, err := webhook.New(conf)
	must(t, err)
	agenttest.Start(t, server.Run)
	agenttest.Eventually(t, "the webhook is ready", func() bool {
		answer, err := http.Get("http://" + conf.MetricsAddr + "/readyz")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	for path, pod := range map[string]string{"/check/enforce": review("no list", ""), "/remove-init": review("80", osmInit), "/other": ""} {
		for _, body := range []string{pod, "no review"} {
			answer, err := client.Post("https://"+conf.Addr+path, "application/json", strings.NewReader(body))
			must(t, err)
			must(t, answer.Body.Close())
		}
	}
	return conf.MetricsAddr
}

// TestTheOperatorsPageHasTheWebhooksMetrics wants a row for each and for no other.
func TestTheOperatorsPageHasTheWebhooksMetrics(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../deploy/README.md")
	must(t, err)
	rows := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(detour_webhook_[a-z_]+)`").FindAllStringSubmatch(string(page), -1) {
		rows[m[1]] = true
	}
	exported := metrics{}
	exported.add(t, "detour-webhook", serveWebhook(t))
	found := map[string]bool{}
	for name := range exported {
		if strings.HasPrefix(name, "detour_webhook_") {
			found[regexp.MustCompile("_(bucket|sum|count)$").ReplaceAllString(name, "")] = true
		}
	}
	if !maps.Equal(rows, found) {
		t.Errorf("deploy/README.md has %v, the webhook exports %v", rows, found)
	}
}

const osmInit = `{"name": "osm-init", "securityContext": {"privileged": true}}`

// review asks about an injected pod with a list of ports.
func review(ports, initContainers string) string {
	return `{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
		"uid": "1", "kind": {"version": "v1", "kind": "Pod"}, "namespace": "shop", "operation": "CREATE", "object": {
			"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "a",
				"annotations": {"openservicemesh.io/outbound-port-exclusion-list": "` + ports + `"}},
			"spec": {"containers": [{"name": "app"}, {"name": "envoy", "securityContext": {"runAsUser": 1500}}],
				"initContainers": [` + initContainers + `]}}}}`
}
