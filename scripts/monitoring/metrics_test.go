package monitoring

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// metric is what is known of the series of one name.
type metric struct {
	counter bool                // it only grows: a counter, or a part of a histogram
	labels  map[string][]string // their values; nil is any
}

// metrics are what Prometheus has, by name.
type metrics map[string]metric

// targetLabels are those that Prometheus and the PodMonitors give each series of a pod. The job is what tells the pods apart.
func targetLabels(job string) map[string][]string {
	return map[string][]string{"job": {job}, "namespace": nil, "pod": nil, "container": nil, "endpoint": nil, "instance": nil, "node": nil}
}

// kubeStateMetrics are those that the alerts use. kube-state-metrics' documentation has them with these labels.
var kubeStateMetrics = metrics{
	"kube_node_status_condition":                     {labels: map[string][]string{"node": nil, "condition": {"Ready"}, "status": {"true", "false", "unknown"}}},
	"kube_daemonset_status_desired_number_scheduled": {labels: map[string][]string{"namespace": nil, "daemonset": {"detour-agent"}}},
	"kube_deployment_status_replicas_available":      {labels: map[string][]string{"namespace": nil, "deployment": {"detour-webhook"}}},
}

// add adds what the target exports, and up.
func (m metrics) add(t *testing.T, job, addr string) {
	t.Helper()
	answer, err := http.Get("http://" + addr + "/metrics")
	must(t, err)
	defer answer.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(answer.Body)
	must(t, err)
	m.see("up", false, targetLabels(job))
	for name, family := range families {
		kind := strings.ToLower(family.GetType().String())
		for _, sample := range family.GetMetric() {
			labels := targetLabels(job)
			for _, pair := range sample.GetLabel() {
				labels[pair.GetName()] = []string{pair.GetValue()}
			}
			if kind != "histogram" {
				m.see(name, kind == "counter", labels)
				continue
			}
			m.see(name+"_sum", true, labels)
			m.see(name+"_count", true, labels)
			labels["le"] = nil
			m.see(name+"_bucket", true, labels)
		}
	}
}

// see adds a series.
func (m metrics) see(name string, counter bool, labels map[string][]string) {
	known, ok := m[name]
	if !ok {
		known = metric{counter, map[string][]string{}}
		m[name] = known
	}
	for label, values := range labels {
		if all, ok := known.labels[label]; !ok || values == nil || all == nil {
			known.labels[label] = values
		} else if !slices.Contains(all, values[0]) {
			known.labels[label] = append(all, values...)
		}
	}
}
