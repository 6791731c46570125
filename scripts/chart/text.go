package main

import (
	"fmt"
	"regexp"
	"strings"
)

// replacements put values where the manifests have what a kustomization would change by a field of its own, wherever that is.
var replacements = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`(?m)(image: ).*\bdetour:.*$`), `$1{{ include "detour.image" . }}`},
	{regexp.MustCompile(`(imagePullPolicy: )IfNotPresent`), `$1{{ .Values.image.pullPolicy }}`},
	{regexp.MustCompile(`(path: )/opt/cni/bin`), `$1{{ .Values.cni.binDir }}`},
	{regexp.MustCompile(`(path: |--host-cni-conf-dir=)/etc/cni/net\.d`), `$1{{ .Values.cni.confDir }}`},
	{regexp.MustCompile(`(?m)([:-] )detour-system$`), `$1{{ .Release.Namespace | quote }}`},
	{regexp.MustCompile(`detour-system`), `{{ .Release.Namespace }}`},
	// The rights to the mesh's configuration follow the net conf.
	{regexp.MustCompile(`(?m)^( +- )(osm-mesh-config|fsm-mesh-config|istio)$`), `$1{{ dig "meshConfig" "name" "$2" .Values.netConf }}`},
	{regexp.MustCompile(`((?:namespace|kubernetes.io/metadata.name): )istio-system`), `$1{{ dig "meshConfig" "namespace" "istio-system" .Values.netConf }}`},
	{regexp.MustCompile(`(?m)^( *)imagePullSecrets:\n.*$`), `${1}imagePullSecrets: << toYaml .Values.image.pullSecrets >>`},
	// << EXPRESSION >>, whole values that are not scalars in lines of their own.
	{regexp.MustCompile(`(?m)^( *)(.*:) '?<< toYaml (.*) >>'?$`), `$1$2{{ toYaml $3 | nindent INDENT${1}END }}`},
	{regexp.MustCompile(`'?<< (.*) >>'?`), `{{ $1 }}`},
}

// toTemplate makes a template of text that has no template's actions but those that merge wrote, each in a line of its own.
func toTemplate(text string) string {
	var escaped strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "{{- ") {
			line = strings.ReplaceAll(line, "{{", `{{ "{{" }}`)
		}
		escaped.WriteString(line)
	}
	text = escaped.String()
	for _, r := range replacements {
		text = r.pattern.ReplaceAllString(text, r.with)
	}
	return indent.ReplaceAllStringFunc(text, func(spaces string) string {
		return fmt.Sprint(len(spaces) - len("INDENTEND") + 2)
	})
}

// indent stands for the spaces ahead of a value.
var indent = regexp.MustCompile(`INDENT *END`)
