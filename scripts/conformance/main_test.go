package conformance

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/nettest"
)

// patience is for one program to end or to answer, on a busy machine.
const patience = 2 * time.Minute

// object is any Kubernetes object, or a part of one.
type object = map[string]any

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// program is the path of one of a mesh's programs.
func program(t *testing.T, mesh, name string) string {
	t.Helper()
	path := filepath.Join(os.Getenv("CONFORMANCE_BIN"), name)
	_, err := os.Stat(path)
	switch {
	case err == nil:
		return path
	case slices.Contains(strings.Fields(os.Getenv("CONFORMANCE_REQUIRE")), mesh):
		t.Fatalf("CONFORMANCE_REQUIRE names %s, but: %v", mesh, err)
	}
	t.Skipf("skipped: %v", err)
	return ""
}

// command is a program of a test, which ends with it.
func command(t *testing.T, path string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, path, args...)
}

// output runs a command, in a namespace if that isn't nil, and returns what it prints.
func output(t *testing.T, ns *nettest.Namespace, cmd *exec.Cmd) string {
	t.Helper()
	out, err := tryOutput(ns, cmd)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryOutput(ns *nettest.Namespace, cmd *exec.Cmd) (string, error) {
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	run := cmd.Run
	if ns != nil {
		run = func() error { return ns.Do(cmd.Run) }
	}
	if err := run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s%s", strings.Join(cmd.Args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// parse reads an object from YAML.
func parse(t *testing.T, text string) object {
	t.Helper()
	var o object
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return o
}

// render writes objects as YAML documents.
func render(t *testing.T, objects ...object) string {
	t.Helper()
	var documents []string
	for _, o := range objects {
		text, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, string(text))
	}
	return strings.Join(documents, "---\n")
}

// merge puts what is in over into base: objects are merged, all else is replaced.
func merge(base, over object) object {
	for key, value := range over {
		inner, ok := value.(object)
		if before, both := base[key].(object); ok && both {
			value = merge(before, inner)
		}
		base[key] = value
	}
	return base
}

// at is the object at a path of another one, which is made where it isn't.
func at(o object, path ...string) object {
	for _, key := range path {
		inner, ok := o[key].(object)
		if !ok {
			inner = object{}
			o[key] = inner
		}
		o = inner
	}
	return o
}

// containers are a pod's containers of a list, initContainers or containers.
func containers(pod object, list string) []object {
	all, _ := at(pod, "spec")[list].([]any)
	var out []object
	for _, c := range all {
		out = append(out, c.(object))
	}
	return out
}

// takeOut removes an init container from a pod and returns it, nil if there is none of the name.
func takeOut(pod object, name string) object {
	var taken object
	var rest []any
	for _, c := range containers(pod, "initContainers") {
		if c["name"] == name {
			taken = c
			continue
		}
		rest = append(rest, c)
	}
	at(pod, "spec")["initContainers"] = rest
	return taken
}

// argv is what a container runs, where its image has the program of that path as its entrypoint.
func argv(c object, entrypoint string) []string {
	words := []string{entrypoint}
	if command, ok := c["command"].([]any); ok {
		words = nil
		for _, w := range command {
			words = append(words, w.(string))
		}
	}
	args, _ := c["args"].([]any)
	for _, w := range args {
		words = append(words, w.(string))
	}
	return words
}

// environ is a container's environment; what comes from the pod's status is what the pod's address is.
func environ(c object, podIP string) []string {
	env := []string{"PATH=" + os.Getenv("PATH")}
	list, _ := c["env"].([]any)
	for _, v := range list {
		variable := v.(object)
		value, literal := variable["value"].(string)
		if !literal {
			value = podIP
		}
		env = append(env, variable["name"].(string)+"="+value)
	}
	return env
}
