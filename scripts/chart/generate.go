package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// header begins each generated template.
const header = "{{- /* Made of %s by `make chart`. Change it there. */}}\n"

// set is the objects of one template.
type set struct {
	part
	objects []object
	changed map[int][]variant // by index
}

// generate makes the templates, by name.
func generate(k kustomize) (map[string]string, error) {
	sets, err := agentSets(k)
	if err != nil {
		return nil, err
	}
	admission, err := policySet(k)
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, s := range append(sets, admission) {
		if len(s.objects) == 0 {
			continue
		}
		if files[s.file], err = s.template(); err != nil {
			return nil, fmt.Errorf("%s: %w", s.folder, err)
		}
	}
	patch, err := os.ReadFile(filepath.Join(k.root, "deploy", uninstall))
	files["_uninstall.tpl"] = fmt.Sprintf(header, "deploy/"+uninstall) + "{{- define \"detour.uninstall\" }}\n" + toTemplate(string(patch)) + "{{- end }}\n"
	return files, err
}

// agentSets are the objects of the first mesh, those that each component and other mesh adds, and how they change the former.
func agentSets(k kustomize) ([]set, error) {
	objects, err := k.build(base.folder, nil, values)
	if err != nil {
		return nil, err
	}
	sets := []set{{part: base, objects: objects, changed: map[int][]variant{}}}
	for _, p := range slices.Concat(meshes, components) {
		resource, with := p.folder, []string(nil)
		if !strings.HasPrefix(p.folder, "overlays/") {
			resource, with = base.folder, []string{p.folder}
		}
		objects, err := k.build(resource, with, values)
		if err != nil {
			return nil, err
		}
		added := set{part: p}
		for _, o := range objects {
			at := slices.IndexFunc(sets[0].objects, o.is)
			switch {
			case at < 0:
				added.objects = append(added.objects, o)
			case sets[0].objects[at].text != o.text:
				sets[0].changed[at] = append(sets[0].changed[at], variant{p.when, o.text})
			}
		}
		sets = append(sets, added)
	}
	return sets, nil
}

// policySet is the policies, whose version depends on the cluster.
func policySet(k kustomize) (set, error) {
	s := set{part: policies, changed: map[int][]variant{}}
	beta, err := k.build(policies.folder, nil, values)
	if err != nil {
		return s, err
	}
	v1, err := k.build(stable.folder, nil, values)
	for i, o := range v1 {
		s.changed[i] = []variant{{stable.when, o.text}}
	}
	s.objects = beta
	return s, err
}

// template is the text of the set's file.
func (s set) template() (string, error) {
	var text strings.Builder
	fmt.Fprintf(&text, header, "deploy/"+s.folder)
	if s.when != "" {
		text.WriteString("{{- if " + s.when + " }}\n")
	}
	for i, o := range s.objects {
		merged, err := merge(o.text, s.changed[i])
		if err != nil {
			return "", fmt.Errorf("%s %s: %w", o.kind, o.name, err)
		}
		text.WriteString("---\n" + merged)
	}
	if s.when != "" {
		text.WriteString("{{- end }}\n")
	}
	return toTemplate(text.String()), nil
}
