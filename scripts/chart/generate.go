package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// header begins each generated template.
const header = "{{- /* `make chart` made this of deploy/%s and of what changes it. */}}\n"

// set is the objects that a part adds, and what other parts change of them.
type set struct {
	part
	objects []object
	changed map[int][]variant // by index
}

// generate makes the templates, by name.
func generate(k kustomize) (map[string]string, error) {
	sets, err := k.sets()
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, s := range sets {
		if _, taken := files[s.file]; taken || s.file == "" {
			return nil, fmt.Errorf("deploy/%s adds objects: give it a file of its own", s.folder)
		}
		if files[s.file], err = s.template(); err != nil {
			return nil, fmt.Errorf("%s: %w", s.folder, err)
		}
	}
	patch, err := os.ReadFile(filepath.Join(k.root, "deploy", uninstall))
	files["_uninstall.tpl"] = fmt.Sprintf(header, uninstall) +
		"{{- define \"detour.uninstall\" }}\n" + toTemplate(string(patch)) + "{{- end }}\n"
	return files, err
}

// sets are those of all parts that add objects.
func (k kustomize) sets() ([]set, error) {
	first, err := k.build(base)
	if err != nil {
		return nil, err
	}
	sets := []set{{part: base, objects: first}}
	parts := slices.Concat(meshes, components)
	for _, p := range parts {
		all, err := k.build(p)
		if err != nil {
			return nil, err
		}
		added := slices.DeleteFunc(all, func(o object) bool {
			return slices.ContainsFunc(first, o.is) || p.kind != "" && p.kind != o.kind
		})
		if len(added) > 0 {
			sets = append(sets, set{part: p, objects: added})
		}
	}
	for i := range sets {
		if err := sets[i].compare(k, parts); err != nil {
			return nil, err
		}
	}
	s, err := k.policySet()
	return append(sets, s), err
}

// compare finds out what the parts change of the set's objects.
func (s *set) compare(k kustomize, parts []part) error {
	s.changed = map[int][]variant{}
	for _, p := range parts {
		if p.folder == s.folder || s.part != base && p.isMesh() && s.isMesh() {
			continue
		}
		objects, err := k.build(s.part, p)
		if err != nil {
			return err
		}
		for i, o := range s.objects {
			at := slices.IndexFunc(objects, o.is)
			if at < 0 {
				return fmt.Errorf("%s removes the %s %s of %s, which the chart has no means for", p.folder, o.kind, o.name, s.folder)
			}
			if objects[at].text != o.text {
				s.changed[i] = append(s.changed[i], variant{p.when, objects[at].text})
			}
		}
	}
	return nil
}

// policySet is the policies, whose version depends on the cluster.
func (k kustomize) policySet() (set, error) {
	s := set{part: policies, changed: map[int][]variant{}}
	v1, err := k.build(stable)
	if err != nil {
		return s, err
	}
	for i, o := range v1 {
		s.changed[i] = []variant{{stable.when, o.text}}
	}
	s.objects, err = k.build(policies)
	return s, err
}

// template is the text of the set's file.
func (s set) template() (string, error) {
	var text strings.Builder
	fmt.Fprintf(&text, header, s.folder)
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
