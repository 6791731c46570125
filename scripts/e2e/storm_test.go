//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// As many meshed pods at once as DETOUR_E2E_PODS says, up to the node's 250: all of them are meshed, and no ADD fails.
func TestPodsAtOnceOnARealNode(t *testing.T) {
	installDetour(t)
	pods := 40
	if text := os.Getenv("DETOUR_E2E_PODS"); text != "" {
		var err error
		pods, err = strconv.Atoi(text)
		must(t, err)
	}
	namespace := newNamespace(t, "storm", restricted)
	var all strings.Builder
	for i := range pods {
		all.WriteString("---\n" + meshedPod(t, namespace, fmt.Sprint("pod-", i), nil, outsideAddr))
	}
	began := time.Now()
	apply(t, all.String())
	kubectl(t, "wait", "--namespace", namespace, "--for=condition=Ready", "--timeout=30m", "--all", "pod")
	took := time.Since(began)
	for i := range pods {
		wantLine(t, namespace, fmt.Sprint("pod-", i), fmt.Sprintf("%[1]s: proxy 15001 original %[1]s", outsideAddr))
	}
	adds, slowest := 0, addTime{}
	for line := range strings.Lines(shell(t, `grep '"pod":"`+namespace+`/' /var/log/detour.log`)) {
		var a addTime
		must(t, json.Unmarshal([]byte(line), &a))
		if a.Verb != "ADD" {
			continue
		}
		adds++
		if a.Outcome != "programmed" || a.Fallback != "" {
			t.Errorf("detour's log: %s", line)
		}
		if a.MS["total"] > slowest.MS["total"] {
			slowest = a
		}
	}
	if adds != pods {
		t.Errorf("there were %d ADDs for %d pods", adds, pods)
	}
	fmt.Printf("%d meshed pods at once: all ready after %.0f s; detour's slowest ADD %.0f ms, %s: %v\n",
		pods, took.Seconds(), slowest.MS["total"], slowest.Pod, slowest.MS)
	kubectl(t, "delete", "pods", "--namespace", namespace, "--all", "--now", "--timeout=30m")
}

// addTime is a line of detour's log about an ADD.
type addTime struct {
	Verb, Pod, Outcome, Fallback string
	MS                           map[string]float64 `json:"ms"`
}
