//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// How long a pod, a rollout or anything else may take on a slow and busy machine, and how long to wait before asking again.
const (
	atMost   = 3 * time.Minute
	pollTime = 200 * time.Millisecond
)

// output runs a command and returns its standard output.
func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("run %q: %w: %s", cmd.Args, err, stderr.String())
	}
	return stdout.String(), nil
}

func mustOutput(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := output(cmd)
	must(t, err)
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	must(t, err)
	return string(data)
}

// kubectl runs kubectl, which must succeed.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := tryKubectl(t, args...)
	must(t, err)
	return out
}

func tryKubectl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return output(kubernetes.Kubectl(t.Context(), args...))
}

// shell runs a script on the node, which must succeed.
func shell(t *testing.T, script string) string {
	t.Helper()
	return mustOutput(t, kubernetes.Shell(t.Context(), script))
}

// writeOnNode puts a file on the node in one step.
func writeOnNode(t *testing.T, path, mode string, content []byte) {
	t.Helper()
	cmd := kubernetes.Shell(t.Context(), fmt.Sprintf("cat >'%[1]s.new' && chmod %[2]s '%[1]s.new' && mv '%[1]s.new' '%[1]s'", path, mode))
	cmd.Stdin = bytes.NewReader(content)
	mustOutput(t, cmd)
}

// manifest reads a file of testdata/e2e with its $NAMEs replaced by the values.
func manifest(t *testing.T, name string, values map[string]string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../testdata/e2e", name))
	if err != nil {
		t.Fatal(err)
	}
	return os.Expand(string(text), func(key string) string {
		value, ok := values[key]
		if !ok {
			t.Fatalf("%s: nobody says what $%s is", name, key)
		}
		return value
	})
}

// apply applies YAML.
func apply(t *testing.T, yaml string) {
	t.Helper()
	must(t, tryApply(t, yaml))
}

func tryApply(t *testing.T, yaml string) error {
	t.Helper()
	cmd := kubernetes.Kubectl(t.Context(), "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(yaml)
	_, err := output(cmd)
	return err
}

// newNamespace creates a namespace with labels, KEY=VALUE, and removes it at the test's end. Pods may be created in it.
func newNamespace(t *testing.T, name string, labels ...string) string {
	t.Helper()
	eventually(t, func() error { // the one of an earlier test may still be going
		_, err := tryKubectl(t, "create", "namespace", name)
		return err
	})
	deleteAtEnd(t, "namespace", name)
	if labels != nil {
		kubectl(t, append([]string{"label", "namespace", name}, labels...)...)
	}
	eventually(t, func() error {
		_, err := tryKubectl(t, "get", "serviceaccount", "default", "--namespace", name)
		return err
	})
	return name
}

// deleteAtEnd deletes an object at the test's end.
func deleteAtEnd(t *testing.T, kind, name string) {
	t.Cleanup(func() {
		if out, err := kubernetes.Kubectl(context.Background(), "delete", kind, name, "--wait=false").CombinedOutput(); err != nil {
			t.Errorf("delete %s %s: %v: %s", kind, name, err, out)
		}
	})
}

// restricted is the label with which a namespace takes only pods of the Pod Security Standard restricted.
const restricted = "pod-security.kubernetes.io/enforce=restricted"

// waitReady waits until the pod is ready, and says why it isn't.
func waitReady(t *testing.T, namespace, pod string) {
	t.Helper()
	_, err := tryKubectl(t, "wait", "--namespace", namespace, "--for=condition=Ready", "--timeout="+atMost.String(), "pod/"+pod)
	if err != nil {
		t.Fatalf("%v\n%s", err, kubectl(t, "describe", "pod", "--namespace", namespace, pod))
	}
}

// podIPs are the pod's addresses, the primary one first.
func podIPs(t *testing.T, namespace, pod string) []string {
	t.Helper()
	var ips []string
	eventually(t, func() error { // the status has them when the kubelet gets to it
		out, err := tryKubectl(t, "get", "pod", "--namespace", namespace, pod, "-o", "jsonpath={.status.podIPs[*].ip}")
		if ips = strings.Fields(out); err == nil && len(ips) == 0 {
			err = fmt.Errorf("pod %s/%s has no address", namespace, pod)
		}
		return err
	})
	return ips
}

// dial connects from the node and returns the line that is answered.
func dial(t *testing.T, ip string, port int) (string, error) {
	t.Helper()
	return dialFrom(t, kubernetes, ip, port)
}

// shells runs scripts on a node.
type shells interface {
	Shell(ctx context.Context, script string) *exec.Cmd
}

func dialFrom(t *testing.T, node shells, ip string, port int) (string, error) {
	t.Helper()
	script := fmt.Sprintf("timeout 3 bash -c 'exec 3<>/dev/tcp/%s/%d && head -n 1 <&3'", ip, port)
	out, err := output(node.Shell(t.Context(), script))
	return strings.TrimSpace(out), err
}

// wantAnswer wants that a connection from the node is answered so, within some time.
func wantAnswer(t *testing.T, ip string, port int, want string) {
	t.Helper()
	eventually(t, func() error {
		got, err := dial(t, ip, port)
		if err == nil && got != want {
			err = fmt.Errorf("%s port %d answered %q, want %q", ip, port, got, want)
		}
		return err
	})
}

// wantLine wants that the pod's application logs a line, within some time, and no other that begins like it up to the
// colon and the blank, but for those that say that the connection failed: a server may still be starting.
func wantLine(t *testing.T, namespace, pod, want string) {
	t.Helper()
	begin, _, _ := strings.Cut(want, ": ")
	eventually(t, func() error {
		log, err := tryKubectl(t, "logs", "--namespace", namespace, pod, "--container", "app")
		if err != nil {
			return err
		}
		found := false
		for line := range strings.Lines(log) {
			line = strings.TrimSpace(line)
			switch {
			case line == want:
				found = true
			case strings.HasPrefix(line, begin+": ") && !strings.HasPrefix(line, begin+": error: "):
				t.Fatalf("pod %s/%s logged %q, want %q", namespace, pod, line, want)
			}
		}
		if !found {
			return fmt.Errorf("pod %s/%s did not log %q, but %q", namespace, pod, want, log)
		}
		return nil
	})
}

// eventually asks until there is no error, and fails the test if that takes long.
func eventually(t *testing.T, question func() error) {
	t.Helper()
	deadline := time.Now().Add(atMost)
	for {
		err := question()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %v", atMost, err)
		}
		time.Sleep(pollTime)
	}
}
