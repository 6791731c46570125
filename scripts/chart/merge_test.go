package main

import (
	"strings"
	"testing"
)

func TestMerge(t *testing.T) {
	tests := []struct {
		name, base string
		variants   []variant
		want       string // empty for an error
	}{
		{"the same", "a\nb\n", []variant{{"X", "a\nb\n"}}, "a\nb\n"},
		{"a line more", "a\nb\n", []variant{{"X", "a\nx\nb\n"}}, "a\n{{- if X }}\nx\n{{- end }}\nb\n"},
		{"a line more at the end", "a\n", []variant{{"X", "a\nx\n"}}, "a\n{{- if X }}\nx\n{{- end }}\n"},
		{
			"two at one place, in their order", "a\nb\n", []variant{{"X", "a\nx\nb\n"}, {"Y", "a\ny\nb\n"}},
			"a\n{{- if X }}\nx\n{{- end }}\n{{- if Y }}\ny\n{{- end }}\nb\n",
		},
		{
			"another line", "a\nb\nc\n", []variant{{"X", "a\nx\nc\n"}, {"Y", "a\ny\nc\n"}},
			"a\n{{- if X }}\nx\n{{- else if Y }}\ny\n{{- else }}\nb\n{{- end }}\nc\n",
		},
		{"a line less", "a\nb\n", []variant{{"X", "a\n"}}, "a\n{{- if X }}\n{{- else }}\nb\n{{- end }}\n"},
		{
			"one more ahead of another", "a\nb\n", []variant{{"X", "a\nx\nb\n"}, {"Y", "a\ny\n"}},
			"a\n{{- if X }}\nx\n{{- end }}\n{{- if Y }}\ny\n{{- else }}\nb\n{{- end }}\n",
		},
		{"different ranges", "a\nb\nc\n", []variant{{"X", "x\nc\n"}, {"Y", "a\ny\nc\n"}}, ""},
		{"different ends", "a\nb\nc\n", []variant{{"X", "x\nb\nc\n"}, {"Y", "y\nc\n"}}, ""},
		{"one more inside of another", "a\nb\nc\n", []variant{{"X", "x\nc\n"}, {"Y", "a\ny\nb\nc\n"}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := merge(tt.base, tt.variants)
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("%v\n%s\nwant\n%s", err, got, tt.want)
			}
		})
	}
}

// Only the chart's own actions are actions.
func TestToTemplate(t *testing.T) {
	for text, want := range map[string]string{
		"{{- if X }}\n":                                            "{{- if X }}\n",
		"summary: node {{ $labels.node }}\n":                       "summary: node {{ \"{{\" }} $labels.node }}\n",
		"    resources: << toYaml .Values.x >>\n":                  "    resources:{{ toYaml .Values.x | nindent 6 }}\n",
		"  name: '<< .Release.Name | quote >>'\n":                  "  name: {{ .Release.Name | quote }}\n",
		"        image: ghcr.io/detour-cni/detour:v0.1.0\n":        "        image: {{ include \"detour.image\" . }}\n",
		"  namespace: detour-system\n":                             "  namespace: {{ .Release.Namespace | quote }}\n",
		"  - detour-system\n":                                      "  - {{ .Release.Namespace | quote }}\n",
		"url: https://detour-webhook.detour-system.svc\n":          "url: https://detour-webhook.{{ .Release.Namespace }}.svc\n",
		"  resourceNames:\n  - osm-mesh-config\n  - another-one\n": "  resourceNames:\n  - {{ dig \"meshConfig\" \"name\" \"osm-mesh-config\" .Values.netConf }}\n  - another-one\n",
	} {
		if got := toTemplate(text); got != want {
			t.Errorf("%sbecomes %swant    %s", text, got, want)
		}
	}
	if got := toTemplate("{{ $value }}"); !strings.HasPrefix(got, `{{ "{{" }}`) {
		t.Error(got)
	}
}
