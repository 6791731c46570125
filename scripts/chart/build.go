package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// kustomize builds kustomizations of the repository in root.
type kustomize struct{ program, root string }

// object is one of the objects that a kustomization builds.
type object struct{ kind, name, text string }

func (o object) is(other object) bool { return o.kind == other.kind && o.name == other.name }

// netConf is the ConfigMap with the net conf. kustomize appends a hash of the content to its name.
var netConf = regexp.MustCompile(`(?m)^kind: ConfigMap\nmetadata:\n(?:  .*\n)*?  name: (detour-[0-9a-z]{10})$`)

// build builds a kustomization of folders of deploy/ and more. It leaves out what the chart writes by hand or leaves to Helm: the
// net conf and the namespace.
func (k kustomize) build(resource string, components []string, more string) ([]object, error) {
	dir, err := os.MkdirTemp("", "detour-chart-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	text, err := k.kustomization(dir, resource, components)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text+more), 0o600); err != nil {
		return nil, err
	}
	var stderr strings.Builder
	cmd := exec.Command(k.program, "build", dir)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("build %s with %q: %w: %s", resource, components, err, stderr.String())
	}
	built := string(out)
	if name := netConf.FindStringSubmatch(built); name != nil {
		built = strings.ReplaceAll(built, name[1], "detour")
	}
	var objects []object
	for document := range strings.SplitSeq(built, "\n---\n") {
		o, err := parseObject(document)
		if err != nil {
			return nil, fmt.Errorf("read what %s builds: %w", resource, err)
		}
		if o.kind != "Namespace" && (o.kind != "ConfigMap" || o.name != "detour") {
			objects = append(objects, o)
		}
	}
	return objects, nil
}

// kustomization is the text of a kustomization in dir. kustomize takes only relative paths.
func (k kustomize) kustomization(dir, resource string, components []string) (string, error) {
	deploy, err := filepath.Abs(filepath.Join(k.root, "deploy"))
	if err != nil {
		return "", err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", err
	}
	up, err := filepath.Rel(dir, deploy)
	if err != nil {
		return "", err
	}
	text := "resources: [" + filepath.Join(up, resource) + "]\ncomponents:\n"
	for _, c := range components {
		text += "  - " + filepath.Join(up, c) + "\n"
	}
	return text, nil
}

func parseObject(document string) (object, error) {
	var o struct {
		Kind     string
		Metadata struct{ Name string }
	}
	err := yaml.Unmarshal([]byte(document), &o)
	return object{o.Kind, o.Metadata.Name, strings.TrimSuffix(document, "\n") + "\n"}, err
}
