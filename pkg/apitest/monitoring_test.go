//go:build kubeapi

package apitest

import (
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
)

// serveMonitoring makes the API server know the kinds of deploy/components/monitoring, as the Prometheus Operator defines them.
var serveMonitoring = sync.OnceValue(func() error {
	for _, resource := range []string{"podmonitors", "prometheusrules"} {
		objects, err := readManifest(os.Getenv("DETOUR_MONITORING_KINDS") + "/monitoring.coreos.com_" + resource + ".yaml")
		if err != nil {
			return err
		}
		if _, err := kubernetes.admin.apply(objects[0]); err != nil {
			return err
		}
		if err := kubernetes.admin.waitFor("/apis/monitoring.coreos.com/v1/"+resource, http.StatusOK); err != nil {
			return err
		}
	}
	return nil
})

// A test of TestTheAPIServerTakesAllOfDeploy: a mistake in these kinds does not pass.
func TestTheAPIServerRefusesAMistakeInMonitoring(t *testing.T) {
	t.Parallel()
	if err := serveMonitoring(); err != nil {
		t.Fatal(err)
	}
	for want, patch := range map[string]string{
		`unknown field "spec.podMetricsEndpoints[0].ports"`:  "PodMonitor, path: /spec/podMetricsEndpoints/0/ports, value: metrics",
		`unknown field "spec.groups[0].rules[0].annotation"`: "PrometheusRule, path: /spec/groups/0/rules/0/annotation, value: {}",
		"spec.groups[0].rules[0].for":                        "PrometheusRule, path: /spec/groups/0/rules/0/for, value: soon",
	} {
		kind, add, _ := strings.Cut(patch, ", ")
		dir := customize(t, []string{"overlays/osm"}, []string{"components/monitoring"},
			"patches: [{target: {kind: "+kind+"}, patch: '- {op: add, "+add+"}'}]\n")
		_, err := kubectl(t, "apply", "--dry-run=server", "-k", dir)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s, got %v", want, err)
		}
	}
}
