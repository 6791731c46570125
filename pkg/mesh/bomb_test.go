package mesh

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/pod"
)

// Anyone who may write istio's ConfigMap may write YAML that is short, and large or deep once it is read.
func TestYAMLThatGrowsIsRefused(t *testing.T) {
	t.Parallel()
	aliases := "a0: &a0 [x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 12; i++ {
		aliases += fmt.Sprintf("a%d: &a%[1]d [%s]\n", i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 8))
	}
	d, _ := Find("istio")
	p := pod.Pod{Namespace: "shop", Name: "web", Annotations: map[string]string{istioStatus: "{}"}, Containers: []pod.Container{{Name: "istio-proxy"}}}
	for text, want := range map[string]string{
		aliases:                          "excessive aliasing",
		strings.Repeat("[", 500_000):     "max depth",
		strings.Repeat("{a: ", 200_000):  "max depth",
		strings.Repeat("- ", 400_000):    "max depth",
		"a: " + strings.Repeat("&x ", 9): "data.mesh",
	} {
		object, err := json.Marshal(map[string]any{"kind": "ConfigMap", "data": map[string]string{"mesh": text}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Decide(Input{Pod: p, Config: object}); err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 600 {
			t.Errorf("%.20s...: got %.700v", text, err)
		}
	}
}
