package admission_test

import (
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/admission"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/testcase"
)

// Nothing that a request may hold makes a check panic, and each sentence is a line.
func FuzzChecks(f *testing.F) {
	for _, c := range testcase.Load(f, "../..") {
		in := inputOf(f, c)
		f.Add(c.Mesh, in.Pod, in.Config, deploymentOf(f, in.Pod))
	}
	f.Fuzz(func(t *testing.T, name string, object, config, workload []byte) {
		d, ok := mesh.Find(name)
		if !ok {
			return
		}
		o := decision.Options{Dialect: d}
		in := decision.Input{ID: pod.ID{Namespace: "shop", Name: "web"}, Pod: object, Config: config}
		verdicts := []admission.Verdict{
			admission.CheckPod(o, in), admission.CheckConfig(d, nil, config), admission.CheckConfig(d, config, object), admission.CheckConfig(d, config, nil),
		}
		if made, err := admission.PodOf(workload); err == nil && made != nil {
			in.Pod = made
			verdicts = append(verdicts, admission.CheckTemplate(o, in))
		}
		for _, v := range verdicts {
			if v.Denial != "" && len(v.Warnings) > 0 {
				t.Errorf("denied, and warned: %+v", v)
			}
			for _, text := range append(v.Warnings, v.Denial) {
				if strings.ContainsAny(text, "\r\n") {
					t.Errorf("more than a line: %q", text)
				}
			}
		}
	})
}
