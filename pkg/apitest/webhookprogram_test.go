//go:build kubeapi

package apitest

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// The real program, with a ServiceAccount's files where a kubelet puts them, and the example of deploy/README.md for cert-manager.
func TestTheProgramWithACertificateOfCertManager(t *testing.T) {
	t.Parallel()
	s := newHookScene(t)
	theirs := newCertificate(t, "127.0.0.1", time.Now().Add(time.Hour))
	s.setSecret(map[string]string{"tls.crt": theirs.crt, "tls.key": theirs.key})
	s.setBundles([]byte(theirs.authority))
	s.startProgram("--certificate=external")
	s.waitUntilReady(s.conf)
	s.waitUntilCalled()
	if s.secret("tls.crt") != theirs.crt {
		t.Error("it has changed the Secret")
	}
}

func TestTheProgramMakesItsCertificateAndStopsWhenItIsTold(t *testing.T) {
	t.Parallel()
	s := newHookScene(t)
	cmd := s.startProgram("--drain=1s")
	s.waitUntilReady(s.conf)
	s.waitUntilCalled()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.eventually("it says that it stops", func() bool { return s.ready(s.conf) == "server: it was told to stop" })
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v; %s", err, s.logs.String())
	}
}

var webhookProgram = sync.OnceValues(func() (string, error) {
	path := kubernetes.file("detour-webhook")
	out, err := exec.Command("go", "build", "-o", path, "../../plugin/detour-webhook").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build detour-webhook: %w: %s", err, out)
	}
	return path, nil
})

// startProgram starts detour-webhook with the arguments of the Deployment, but for what is not on loopback, and more.
func (s *hookScene) startProgram(more ...string) *exec.Cmd {
	s.t.Helper()
	nettest.RequireNetns(s.t) // root, who may mount
	program, err := webhookProgram()
	if err != nil {
		s.t.Fatal(err)
	}
	token, err := kubernetes.token(s.namespace, webhookAccount)
	if err != nil {
		s.t.Fatal(err)
	}
	ca, err := os.ReadFile(kubernetes.file("ca.crt"))
	if err != nil {
		s.t.Fatal(err)
	}
	dir := s.t.TempDir()
	for name, text := range map[string]string{"token": token, "ca.crt": string(ca), "netconf.json": `{"mesh": "osm", "meshConfig": {"namespace": "` + s.mesh + `"}}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	const begin = `mount -t tmpfs tmpfs "$(readlink -f /var/run)" && mkdir -p /var/run/secrets/kubernetes.io && cp -r "$1" /var/run/secrets/kubernetes.io/serviceaccount && shift && exec "$@"`
	cmd := exec.Command("sh", append([]string{"-c", begin, "sh", dir, program, "--config=" + filepath.Join(dir, "netconf.json"), "--host=127.0.0.1",
		"--namespace=" + s.namespace, "--configuration=" + s.configuration(), "--listen=" + s.conf.Addr, "--metrics=" + s.conf.MetricsAddr}, more...)...)
	cmd.Env = append(os.Environ(), "KUBERNETES_SERVICE_HOST=127.0.0.1", fmt.Sprintf("KUBERNETES_SERVICE_PORT=%d", kubernetes.port))
	cmd.Stderr = &s.logs
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

// What deploy/README.md says about cert-manager makes the component that only reads.
func TestTheExampleForCertManager(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../deploy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(page), "With `--certificate=external`")
	_, example, _ = strings.Cut(example, "```yaml\nresources:\n  - cert-manager.yaml\n")
	example, _, ok := strings.Cut(example, "```")
	if !ok {
		t.Fatal("there is no example")
	}
	objects := render(t, customize(t, []string{"overlays/osm"}, []string{"components/webhook"}, example))
	if slices.ContainsFunc(objects, func(o object) bool { return o.GetKind() == "Secret" }) {
		t.Error("it has the Secret, which cert-manager makes")
	}
	for kind, want := range map[string]string{
		"Role":                           `"verbs":["list","watch"]`,
		"ClusterRole":                    `"rules":[]`,
		"Deployment":                     `"--certificate=external"`,
		"MutatingWebhookConfiguration":   `"cert-manager.io/inject-ca-from":"detour-system/detour-webhook"`,
		"ValidatingWebhookConfiguration": `"cert-manager.io/inject-ca-from":"detour-system/detour-webhook"`,
	} {
		name := webhookAccount
		if strings.HasSuffix(kind, "Configuration") {
			name = "webhook.detour.io"
		}
		if text := string(mustJSON(t, find(t, objects, kind, name).Object)); !strings.Contains(text, want) || strings.Contains(text, "--certificate=self") {
			t.Errorf("%s lacks %s: %s", kind, want, text)
		}
	}
}

// The webhook's pods need nothing that the strictest of the Pod Security Standards forbids.
func TestTheWebhooksOwnPodsAreRestricted(t *testing.T) {
	t.Parallel()
	objects := render(t, customize(t, []string{"overlays/osm"}, []string{"components/webhook"}, ""))
	namespace := newNamespace(t, "pod-security.kubernetes.io/enforce=restricted")
	mustApply(t, mustParse(t, "{apiVersion: v1, kind: ServiceAccount, metadata: {name: detour-webhook, namespace: "+namespace+"}}"))
	pod := podOf(t, find(t, objects, "Deployment", webhookAccount), namespace, "webhook")
	if code, answer, err := kubernetes.admin.send(http.MethodPost, podsOf(namespace), pod.Object); err != nil || code != http.StatusCreated {
		t.Errorf("%d %s %v", code, answer, err)
	}
	config := find(t, objects, "ConfigMap", "detour")
	if text := string(mustJSON(t, pod.Object)); !strings.Contains(text, `"configMap":{"name":"`+config.GetName()+`"}`) {
		t.Errorf("it does not mount %s", config.GetName())
	}
}
