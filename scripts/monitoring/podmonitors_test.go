package monitoring

import (
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// podMonitor is what of a PodMonitor matters for the alerts.
type podMonitor struct {
	Metadata struct{ Name string }
	Spec     struct {
		Selector            struct{ MatchLabels map[string]string }
		PodMetricsEndpoints []struct {
			Port        string
			Relabelings []struct {
				SourceLabels             []string
				TargetLabel, Replacement string
			}
		}
	}
}

// workload is a DaemonSet or a Deployment.
type workload struct {
	Spec struct {
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				Containers []struct{ Ports []struct{ Name string } }
			}
		}
	}
}

// TestThePodMonitorsFindThePods wants that each selects the pods of its workload and a port that they have, and sets the job by which
// the alerts know them.
func TestThePodMonitorsFindThePods(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(component + "podmonitors.yaml")
	must(t, err)
	workloads := map[string]string{"detour-agent": "base/daemonset.yaml", "detour-webhook": "components/webhook/deployment.yaml"}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var m podMonitor
		must(t, yaml.Unmarshal([]byte(document), &m))
		name := m.Metadata.Name
		var w workload
		readYAML(t, "../../deploy/"+workloads[name], &w)
		delete(workloads, name)
		pods := w.Spec.Template
		if len(m.Spec.Selector.MatchLabels) == 0 {
			t.Errorf("%s selects all pods", name)
		}
		for label, value := range m.Spec.Selector.MatchLabels {
			if pods.Metadata.Labels[label] != value {
				t.Errorf("%s wants label %s=%s, the pods have %v", name, label, value, pods.Metadata.Labels)
			}
		}
		endpoint := m.Spec.PodMetricsEndpoints[0]
		if !slices.ContainsFunc(pods.Spec.Containers[0].Ports, func(p struct{ Name string }) bool { return p.Name == endpoint.Port }) {
			t.Errorf("%s wants port %s, the pods have %v", name, endpoint.Port, pods.Spec.Containers[0].Ports)
		}
		set := map[string]string{}
		for _, r := range endpoint.Relabelings {
			set[r.TargetLabel] = strings.Join(r.SourceLabels, ",") + r.Replacement
		}
		if set["job"] != name {
			t.Errorf("%s sets the job %q", name, set["job"])
		}
		if name == "detour-agent" && set["node"] != "__meta_kubernetes_pod_node_name" {
			t.Errorf("%s sets the node %q", name, set["node"])
		}
	}
	if len(workloads) > 0 {
		t.Errorf("no PodMonitor is for %v", workloads)
	}
}
