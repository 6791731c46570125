//go:build kubeapi

package apitest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// kubectlPath is the program in DETOUR_KUBECTL, or the one beside the API server.
func kubectlPath() (string, error) {
	path := os.Getenv("DETOUR_KUBECTL")
	if path == "" {
		path = programBeside("kubectl")
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run scripts/kube-programs.sh kubectl", err)
	}
	return path, nil
}

// programBeside is a program in the API server's folder.
func programBeside(name string) string {
	return filepath.Join(filepath.Dir(os.Getenv("DETOUR_KUBE_APISERVER")), name)
}

// kubeconfig is the administrator's.
var kubeconfig = sync.OnceValues(func() (string, error) {
	path := kubernetes.file("admin.kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "%s", certificate-authority: "%s"}}]
users: [{name: admin, user: {client-certificate: "%s", client-key: "%s"}}]
contexts: [{name: here, context: {cluster: here, user: admin}}]
current-context: here
`, kubernetes.server, kubernetes.file("ca.crt"), kubernetes.file("admin.crt"), kubernetes.file("admin.key"))
	return path, os.WriteFile(path, []byte(text), 0o600)
})

// expected are warnings that there may be: that there will be stable admission policies, and that the namespace was not made
// by kubectl.
var expected = []string{"v1beta1 MutatingAdmissionPolicy", " is missing the kubectl.kubernetes.io/last-applied"}

// kubectlCommand is kubectl as the administrator runs it.
func kubectlCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := kubectlPath()
	if err != nil {
		t.Fatal(err)
	}
	conf, err := kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, append([]string{"--cache-dir=" + t.TempDir()}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+conf)
	return cmd
}

// kubectl runs kubectl and returns what it printed. Any other warning is an error.
func kubectl(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	cmd := kubectlCommand(t, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	for line := range strings.Lines(stderr.String()) {
		if !slices.ContainsFunc(expected, func(words string) bool { return strings.Contains(line, words) }) {
			return nil, fmt.Errorf("kubectl %s: %s", strings.Join(args, " "), line)
		}
	}
	return stdout.Bytes(), nil
}

// customize writes a user's own kustomization on top of parts of deploy/ and returns its folder.
func customize(t *testing.T, resources, components []string, more string) string {
	t.Helper()
	dir := t.TempDir()
	deploy, err := filepath.Abs("../../deploy")
	if err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(dir) // kustomize resolves links and then goes up
	if err != nil {
		t.Fatal(err)
	}
	up, err := filepath.Rel(real, deploy)
	if err != nil {
		t.Fatal(err)
	}
	list := func(field string, names []string) string {
		if names == nil {
			return ""
		}
		text := field + ":\n"
		for _, name := range names {
			text += "  - " + filepath.Join(up, name) + "\n"
		}
		return text
	}
	text := list("resources", resources) + list("components", components) + more
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// render returns the objects that `kubectl apply -k` would apply.
func render(t *testing.T, dir string) []object {
	t.Helper()
	text, err := kubectl(t, "kustomize", dir)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := parseManifest(dir, text)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// newNamespace makes a namespace with the ServiceAccount that a controller would put there.
func newNamespace(t *testing.T, labels ...string) string {
	t.Helper()
	name := fmt.Sprintf("apart-%d", scenes.Add(1))
	o := mustParse(t, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", name))
	all := map[string]string{}
	for _, label := range labels {
		key, value, _ := strings.Cut(label, "=")
		all[key] = value
	}
	o.SetLabels(all)
	mustApply(t, o)
	mustApply(t, mustParse(t, fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: %s, name: default}}", name)))
	return name
}

func mustParse(t *testing.T, text string) object {
	t.Helper()
	o, err := parseObject([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func mustApply(t *testing.T, o object) object {
	t.Helper()
	stored, err := kubernetes.admin.apply(o)
	if err != nil {
		t.Fatal(err)
	}
	return stored
}
