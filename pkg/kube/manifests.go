package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/mesh"
)

// defaultNamespace is where kubectl apply puts an object that names none.
const defaultNamespace = "default"

// Manifests finds objects in YAML or JSON manifests, which are read once. It is safe for concurrent use.
type Manifests struct {
	path    string
	objects map[key]manifest
}

// key is an object's identity in a cluster. The version is no part of it: all versions show the same object.
type key struct{ group, kind, namespace, name string }

func (k key) String() string { return fmt.Sprintf("%s %s/%s", k.kind, k.namespace, k.name) }

type manifest struct {
	version string
	json    []byte
	place   string // file and document, for errors
}

// NewManifests reads a YAML file, or all .yaml, .yml and .json files of a folder, sorted by name, not recursively. It fails on a
// document that is not a manifest, on a duplicate object, and if there is no object. The error names file and document, counted
// from 1.
func NewManifests(path string) (*Manifests, error) {
	files, err := manifestFiles(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	m := &Manifests{path: path, objects: map[key]manifest{}}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read manifests: %w", err)
		}
		if err := m.read(file, data); err != nil {
			return nil, err
		}
	}
	if len(m.objects) == 0 {
		return nil, fmt.Errorf("read manifests: %s holds no object", path)
	}
	return m, nil
}

func manifestFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s holds no .yaml, .yml or .json file", path)
	}
	return files, nil
}

// read adds the objects of one file.
func (m *Manifests) read(file string, data []byte) error {
	for i, doc := range documents(data) {
		place := fmt.Sprintf("%s, document %d", file, i+1)
		object, err := yaml.YAMLToJSONStrict(doc)
		if err != nil {
			return fmt.Errorf("parse %s: %w", place, err)
		}
		if string(object) == "null" {
			continue // nothing but comments
		}
		if err := m.add(place, object); err != nil {
			return err
		}
	}
	return nil
}

// documents splits YAML at its document markers: lines that begin with three dashes, which a comment or content may follow. The text
// before the first marker is a document only if it has more than comments and directives.
func documents(data []byte) [][]byte {
	var docs [][]byte
	var doc []byte
	content := false
	for line := range strings.Lines(string(data)) {
		rest, marker := strings.CutPrefix(line, "---")
		if marker && (rest == "" || strings.ContainsRune(" \t\r\n", rune(rest[0]))) {
			if content {
				docs = append(docs, doc)
			}
			doc, content = nil, true
		} else if trimmed := strings.TrimSpace(line); trimmed != "" && trimmed[0] != '#' && line[0] != '%' {
			content = true
		}
		doc = append(doc, line...)
	}
	return append(docs, doc)
}

// head identifies a manifest.
type head struct {
	APIVersion string
	Kind       string
	Metadata   struct{ Namespace, Name string }
	Items      []json.RawMessage
}

// add takes in one object, or each one of a List.
func (m *Manifests) add(place string, object []byte) error {
	var h head
	if err := json.Unmarshal(object, &h); err != nil {
		return fmt.Errorf("parse %s: not a Kubernetes manifest: %w", place, err)
	}
	switch {
	case h.APIVersion == "" || h.Kind == "":
		return fmt.Errorf("parse %s: not a Kubernetes manifest: it lacks apiVersion or kind", place)
	case h.APIVersion == "v1" && h.Kind == "List":
		return m.addAll(place, h.Items)
	case h.APIVersion == "v1" && h.Kind == "Pod" && h.Metadata.Name == "":
		return fmt.Errorf("parse %s: the Pod has no metadata.name", place)
	case h.Metadata.Name == "":
		return nil // a generateName or a Kustomization: no lookup can name it
	case h.Metadata.Namespace == "":
		var err error
		if object, err = withNamespace(object, defaultNamespace); err != nil {
			return fmt.Errorf("parse %s: %w", place, err)
		}
		h.Metadata.Namespace = defaultNamespace
	}
	return m.store(place, h, object)
}

func (m *Manifests) store(place string, h head, object []byte) error {
	group, version, found := strings.Cut(h.APIVersion, "/")
	if !found {
		group, version = "", h.APIVersion
	}
	k := key{group: group, kind: h.Kind, namespace: h.Metadata.Namespace, name: h.Metadata.Name}
	if other, twice := m.objects[k]; twice {
		return fmt.Errorf("parse %s: %s is in %s already", place, k, other.place)
	}
	m.objects[k] = manifest{version: version, json: object, place: place}
	return nil
}

func (m *Manifests) addAll(place string, items []json.RawMessage) error {
	for i, item := range items {
		if err := m.add(fmt.Sprintf("%s, item %d", place, i+1), item); err != nil {
			return err
		}
	}
	return nil
}

// withNamespace sets the namespace that kubectl apply would, and keeps everything else to the digit.
func withNamespace(object []byte, namespace string) ([]byte, error) {
	var fields, metadata map[string]json.RawMessage
	if err := json.Unmarshal(object, &fields); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(fields["metadata"], &metadata); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	if metadata == nil {
		return nil, errors.New("metadata is null") // it has a name by another case: "Metadata"
	}
	var err error
	if metadata["namespace"], err = json.Marshal(namespace); err != nil {
		return nil, err
	}
	if fields["metadata"], err = json.Marshal(metadata); err != nil {
		return nil, err
	}
	return json.Marshal(fields)
}

// Pods returns all pods as NAMESPACE/NAME, sorted.
func (m *Manifests) Pods() []string {
	var pods []string
	for k := range m.objects {
		if k.group == "" && k.kind == "Pod" {
			pods = append(pods, k.namespace+"/"+k.name)
		}
	}
	slices.Sort(pods)
	return pods
}

// Lookup returns pod and configuration from the manifests. A pod without a namespace is in "default", and its JSON says so. The
// error is ErrNotFound and names up to five existing pods. An absent configuration is not an error.
func (m *Manifests) Lookup(_ context.Context, r Request) (Objects, error) {
	pod, ok := m.objects[key{kind: "Pod", namespace: r.Namespace, name: r.Name}]
	if !ok || pod.version != "v1" {
		return Objects{}, fmt.Errorf("find pod %s/%s in %s: %w; %s", r.Namespace, r.Name, m.path, ErrNotFound, m.whatIsThere())
	}
	c := r.ConfigOf(pod.json)
	if c.IsZero() {
		return Objects{Pod: pod.json}, nil
	}
	config, ok := m.objects[key{group: c.Group, kind: c.Kind, namespace: c.Namespace, name: c.Name}]
	switch {
	case !ok:
		return Objects{Pod: pod.json, ConfigAbsent: fmt.Sprintf("%s is not in %s", c, m.path)}, nil
	case !slices.Contains(c.Versions, config.version):
		absent := fmt.Sprintf("%s in %s is of version %s, not %s", c, config.place, config.version, strings.Join(c.Versions, " or "))
		return Objects{Pod: pod.json, ConfigAbsent: absent}, nil
	}
	return Objects{Pod: pod.json, Config: config.json}, nil
}

func (m *Manifests) whatIsThere() string {
	const most = 5
	pods := m.Pods()
	switch {
	case len(pods) == 0:
		return "it holds no pod"
	case len(pods) > most:
		return fmt.Sprintf("it holds %s and %d more", strings.Join(pods[:most], ", "), len(pods)-most)
	}
	return "it holds " + strings.Join(pods, ", ")
}

// Ready always succeeds: NewManifests has read everything.
func (m *Manifests) Ready(context.Context, mesh.ConfigRef) error { return nil }
