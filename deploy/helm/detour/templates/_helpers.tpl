{{- define "detour.chart" }}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "detour.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/name: detour
helm.sh/chart: {{ include "detour.chart" . }}
{{- end }}

{{- define "detour.image" }}
{{- with .Values.image }}
{{- .repository }}{{ if and .digest (not .tag) }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* The net conf: the values' own fields and the others. */}}
{{- define "detour.netConf" }}
{{- $own := dict "mesh" .Values.mesh }}
{{- if ne .Values.backend "auto" }}
{{- $_ := set $own "backend" .Values.backend }}
{{- end }}
{{- merge $own .Values.netConf | toPrettyJson }}
{{- end }}

{{- /* Pods that admission has changed only start on ready nodes. */}}
{{- define "detour.readyNode" }}
{{- if or .Values.readyNode (ne .Values.admission "none") }}true{{ end }}
{{- end }}

{{- /* The version under which the cluster has admission policies. */}}
{{- define "detour.policyVersion" }}
{{- if .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" }}v1
{{- else if .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy" }}v1beta1
{{- else }}
{{- fail "admission=policies needs the API MutatingAdmissionPolicy, which this cluster does not serve: set admission=webhook" }}
{{- end }}
{{- end }}
