package admission

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/pod"
)

// owner is how a pod names the workload that it belongs to.
type owner struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	Controller bool   `json:"controller"`
}

type template struct {
	Metadata map[string]json.RawMessage `json:"metadata"`
	Spec     json.RawMessage            `json:"spec"`
}

type workload struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Namespace       string  `json:"namespace"`
		Name            string  `json:"name"`
		OwnerReferences []owner `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		Template    template `json:"template"`
		JobTemplate struct {
			Spec struct {
				Template template `json:"template"`
			} `json:"spec"`
		} `json:"jobTemplate"`
	} `json:"spec"`
}

// workloads are the kinds that have a template, and where it is.
var workloads = map[string]func(workload) template{
	"CronJob":     func(w workload) template { return w.Spec.JobTemplate.Spec.Template },
	"DaemonSet":   ownTemplate,
	"Deployment":  ownTemplate,
	"Job":         ownTemplate,
	"ReplicaSet":  ownTemplate,
	"StatefulSet": ownTemplate,
}

func ownTemplate(w workload) template { return w.Spec.Template }

// PodOf returns the v1 Pod that a workload's template makes. It has the workload's namespace and name, and the workload as its controller.
// It is nil for a workload that has a controller itself, such as a Deployment's ReplicaSet: the template is the controller's.
func PodOf(data []byte) ([]byte, error) {
	var w workload
	if err := json.Unmarshal(data, &w); err != nil {
		return nil, fmt.Errorf("decode a workload: %w", err)
	}
	find, ok := workloads[w.Kind]
	if !ok {
		return nil, fmt.Errorf("decode a workload: %.64q is none of %s", w.Kind, strings.Join(slices.Sorted(maps.Keys(workloads)), ", "))
	}
	if slices.ContainsFunc(w.Metadata.OwnerReferences, func(o owner) bool { return o.Controller }) {
		return nil, nil
	}
	t := find(w)
	metadata := map[string]any{}
	for field, value := range t.Metadata {
		metadata[field] = value
	}
	metadata["namespace"], metadata["name"] = w.Metadata.Namespace, w.Metadata.Name
	metadata["ownerReferences"] = []owner{{w.APIVersion, w.Kind, w.Metadata.Name, true}}
	return json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": t.Spec})
}

// CheckTemplate warns of what ADD would say of a workload's pods, whatever addresses they get. in.Pod is PodOf the workload. Only if the
// template has the sidecar, or asks for it, will its pods be meshed for certain. Otherwise the namespace decides, which the template does
// not tell: then CheckTemplate looks at what the annotations of mesh and detour say, which mean nothing to other pods, and at nothing else.
func CheckTemplate(o decision.Options, in decision.Input) Verdict {
	if o.Excluded(in.ID.Namespace) != "" || inHostNetwork(in.Pod) {
		return Verdict{}
	}
	p, err := pod.Parse(in.Pod)
	if err != nil {
		return Verdict{Warnings: []string{fmt.Sprintf("the template of %s can't be read: %v", in.ID, err)}}
	}
	condition := ""
	injected, certain := o.Dialect.Inject(p)
	if !certain || configUnknown(o.Dialect, in) {
		condition = " if the mesh injects its sidecar"
		injected, _ = o.Dialect.Inject(pod.Pod{
			Namespace: p.Namespace, Name: p.Name, Annotations: p.Annotations, Labels: p.Labels, Containers: []pod.Container{{Name: "app"}},
		})
		in.Config = nil
	}
	in.ConfigAbsent, in.Addresses = "", nil // no template's fault, and not known
	all := outcomesOf(func(in decision.Input) (decision.Decision, error) { return o.DecidePod(injected, in) }, in)
	workload := ownerOf(in.Pod)
	denial, warnings := judge(all)
	if denial != "" {
		about := strings.TrimPrefix(denial, "pod "+p.String()+": ")
		return Verdict{Warnings: []string{fmt.Sprintf("%s: its pods would not start%s: %s", workload, condition, about)}}
	}
	var v Verdict
	for _, w := range warnings {
		if len(w.networks) == len(all) {
			v.Warnings = append(v.Warnings, workload+": "+w.text)
		}
	}
	v.Warnings = atMost(v.Warnings)
	return v
}

// ownerOf names the workload of a pod that PodOf returned: "Deployment web".
func ownerOf(data []byte) string {
	var p struct {
		Metadata struct{ OwnerReferences []owner }
	}
	if json.Unmarshal(data, &p) != nil || len(p.Metadata.OwnerReferences) == 0 {
		return "the workload"
	}
	o := p.Metadata.OwnerReferences[0]
	return o.Kind + " " + o.Name
}
