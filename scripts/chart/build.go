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

// build builds the parts together, with the chart's values. It leaves out what the chart writes by hand or leaves to Helm: the
// net conf and the namespace.
func (k kustomize) build(parts ...part) ([]object, error) {
	text, err := k.run(parts)
	if err != nil {
		return nil, err
	}
	if name := netConf.FindStringSubmatch(text); name != nil {
		text = strings.ReplaceAll(text, name[1], "detour")
	}
	var objects []object
	for document := range strings.SplitSeq(text, "\n---\n") {
		o, err := parseObject(document)
		if err != nil {
			return nil, fmt.Errorf("read what %s builds: %w", parts[0].folder, err)
		}
		if o.kind != "Namespace" && (o.kind != "ConfigMap" || o.name != "detour") {
			objects = append(objects, o)
		}
	}
	return objects, nil
}

func (k kustomize) run(parts []part) (string, error) {
	dir, err := os.MkdirTemp("", "detour-chart-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // it is in the folder of temporary files
	text, err := k.kustomization(dir, parts)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		return "", err
	}
	var stderr strings.Builder
	cmd := exec.Command(k.program, "build", dir)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build %v: %w: %s", parts, err, stderr.String())
	}
	return string(out), nil
}

// kustomization is the text of a kustomization in dir: the last of the parts that is no component, or the base, and the
// components. kustomize takes only relative paths.
func (k kustomize) kustomization(dir string, parts []part) (string, error) {
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
	resource, components := base, ""
	for _, p := range parts {
		if p.isComponent() {
			components += "  - " + filepath.Join(up, p.folder) + "\n"
		} else {
			resource = p
		}
	}
	return "resources: [" + filepath.Join(up, resource.folder) + "]\ncomponents:\n" + components + values, nil
}

func parseObject(document string) (object, error) {
	var o struct {
		Kind     string
		Metadata struct{ Name string }
	}
	err := yaml.Unmarshal([]byte(document), &o)
	return object{o.Kind, o.Metadata.Name, strings.TrimSuffix(document, "\n") + "\n"}, err
}
