//go:build kubeapi

package apitest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/detour-cni/detour/pkg/admission"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/testcase"
)

// Every pod of testdata/admission comes out of the policies as out of the webhook, and as the API server stores what is wanted.
func TestEveryAdmittedPod(t *testing.T) {
	t.Parallel()
	plain := admitting(t)
	for _, row := range testcase.LoadAdmitted(t, "../..") {
		t.Run(row.Name, func(t *testing.T) {
			t.Parallel()
			for _, changes := range [][]admission.Change{all[:1], all[1:2], all[2:], all} {
				name := fmt.Sprintf("%s-%d%d", row.Name, len(changes), slices.Index(all, changes[0]))
				for _, way := range ways[:2] {
					if way == ways[0] && !row.OnlyMesh(t) {
						continue // no policy knows the net conf
					}
					labels := labelled(way, changes...)
					if row.Restricted() && len(changes) == len(all) {
						labels = append(labels, "pod-security.kubernetes.io/enforce=restricted")
					}
					namespace := admitting(t, labels...)
					conf, err := netconf.Parse(row.NetConf(t, namespace))
					if err != nil {
						t.Fatal(err)
					}
					mutators.Store(namespace, conf.Options)
					got := storedAs(t, namespace, name, row.PodJSON(t))
					want := storedAs(t, plain, name+"-"+strings.ReplaceAll(way, ".", "-"), mutated(t, conf.Options, namespace, row.PodJSON(t), changes...))
					if got != want {
						t.Errorf("%q: it is\n%s\nand not\n%s", labels, got, want)
					}
				}
			}
		})
	}
}

// mutated is the pod with the changes, as TestEveryCaseGivesItsPod of pkg/admission compares them with the rows.
func mutated(t *testing.T, o decision.Options, namespace string, pod []byte, changes ...admission.Change) []byte {
	t.Helper()
	for _, c := range changes {
		ops, _, err := admission.Mutate(o, c, namespace, pod)
		if err != nil {
			t.Fatal(err)
		}
		patch, err := jsonpatch.DecodePatch(mustJSON(t, ops))
		if err != nil {
			t.Fatal(err)
		}
		if pod, err = patch.Apply(pod); err != nil {
			t.Fatal(err)
		}
	}
	return pod
}

var tokenVolume = regexp.MustCompile(`kube-api-access-[a-z0-9]{5}`)

// storedAs creates a pod and returns what was stored, but for what no two pods have in common. A pod that has two containers of one
// name, which not every change mends, is refused.
func storedAs(t *testing.T, namespace, name string, pod []byte) string {
	t.Helper()
	var o object
	if err := json.Unmarshal(pod, &o.Object); err != nil {
		t.Fatal(err)
	}
	o.SetNamespace(namespace)
	if o.GetGenerateName() == "" {
		o.SetName(name)
	}
	code, answer, err := kubernetes.admin.send(http.MethodPost, podsOf(namespace), o.Object)
	if err != nil {
		t.Fatal(err)
	}
	if code == http.StatusUnprocessableEntity && strings.Contains(string(answer), "Duplicate value") {
		return "two containers have the same name"
	}
	if code != http.StatusCreated {
		t.Fatalf("%s: %d %s", namespace, code, answer)
	}
	var stored object
	if err := json.Unmarshal(answer, &stored.Object); err != nil {
		t.Fatal(err)
	}
	compared := []any{stored.GetLabels(), stored.GetAnnotations(), stored.Object["spec"]}
	return tokenVolume.ReplaceAllString(string(mustJSON(t, compared)), "token")
}
