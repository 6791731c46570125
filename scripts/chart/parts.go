package main

import "strings"

// part is a kustomization, and when the chart has what it changes or adds.
type part struct {
	folder string // in deploy/
	when   string // a condition in the language of templates
	file   string // the template of the objects that the part adds, if it adds any
	kind   string // of these objects; empty for all of them
}

func (p part) isMesh() bool      { return strings.HasPrefix(p.folder, "overlays/") }
func (p part) isComponent() bool { return !p.isMesh() && !strings.HasPrefix(p.folder, "admission/") }

// base is what all others change: the first mesh.
var base = part{folder: "overlays/osm", file: "agent.yaml"}

// meshes exclude each other; components don't, and are applied in this order.
var (
	meshes = []part{
		{folder: "overlays/osm-v1", when: `eq .Values.mesh "osm-v1"`},
		{folder: "overlays/osm-edge", when: `eq .Values.mesh "osm-edge"`},
		{folder: "overlays/fsm", when: `eq .Values.mesh "fsm"`},
		{folder: "overlays/istio", when: `eq .Values.mesh "istio"`, file: "istio.yaml"},
	}
	components = []part{
		{folder: "components/ready-node", when: `include "detour.readyNode" .`, file: "ready-node.yaml"},
		{folder: "components/repair-evict", when: `eq .Values.repair "evict"`, file: "repair-evict.yaml"},
		{folder: "components/repair-in-place", when: `eq .Values.repair "in-place"`},
		{folder: "components/no-api-fallback", when: `not .Values.apiFallback`},
		{folder: "components/webhook", when: `eq .Values.admission "webhook"`, file: "webhook.yaml"},
		{folder: "components/monitoring", when: `.Values.podMonitor`, file: "pod-monitor.yaml", kind: "PodMonitor"},
		{folder: "components/monitoring", when: `.Values.alerts`, file: "alerts.yaml", kind: "PrometheusRule"},
		{folder: "components/monitoring", when: `.Values.dashboard`, file: "dashboard.yaml", kind: "ConfigMap"},
		{folder: "../scripts/chart/pull-secrets", when: `.Values.image.pullSecrets`}, // the last: it changes what others add
	}
)

// The policies are the same in both versions of their API.
var (
	policies = part{folder: "admission/v1beta1", when: `eq .Values.admission "policies"`, file: "policies.yaml"}
	stable   = part{folder: "admission/v1", when: `eq (include "detour.policyVersion" .) "v1"`}
)

// uninstall is the patch that the hook applies.
const uninstall = "components/uninstall/uninstall.yaml"

// values puts the chart's values where a kustomization would have a patch of the user's. << EXPRESSION >> becomes a template's.
const values = `
labels:
  - pairs:
      app.kubernetes.io/instance: << .Release.Name | quote >>
      app.kubernetes.io/managed-by: << .Release.Service >>
      helm.sh/chart: << include "detour.chart" . >>
patches:
  - target: {kind: DaemonSet|Deployment}
    patch: |
      - {op: add, path: /spec/template/metadata/annotations/checksum~1netconf, value: << include "detour.netConf" . | sha256sum >>}
  - target: {kind: DaemonSet, name: detour-agent}
    patch: |
      - {op: replace, path: /spec/template/spec/nodeSelector, value: << toYaml .Values.nodeSelector >>}
      - {op: replace, path: /spec/template/spec/tolerations, value: << toYaml .Values.tolerations >>}
      - {op: replace, path: /spec/template/spec/containers/0/resources, value: << toYaml .Values.resources >>}
  - target: {kind: Deployment, name: detour-webhook}
    patch: |
      - {op: replace, path: /spec/replicas, value: << .Values.webhook.replicas >>}
      - {op: replace, path: /spec/template/spec/containers/0/resources, value: << toYaml .Values.webhook.resources >>}
`
