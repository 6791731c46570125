package agent

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/detour-cni/detour/pkg/agent/repair"
)

// deploy/README.md has a row for each of the agent's metrics and, but for the webhook's, for no other. It names every label, reason class
// and repair mode.
func TestTheOperatorsPageHasEveryMetric(t *testing.T) {
	page, err := os.ReadFile("../../deploy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	want, words := described(newMetrics(observed{}).registry)
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(detour_[a-z_]+)`").FindAllStringSubmatch(string(page), -1) {
		if !strings.HasPrefix(m[1], "detour_webhook_") {
			got = append(got, m[1])
		}
	}
	slices.Sort(got)
	got = slices.Compact(got) // the webhook has detour_build_info, too
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("deploy/README.md has the metrics %q\nwant %q", got, want)
	}
	words = append(words, string(repair.Report), string(repair.Evict), string(repair.InPlace))
	for _, class := range classes {
		words = append(words, class)
	}
	for _, word := range words {
		if !strings.Contains(string(page), "`"+word+"`") {
			t.Errorf("deploy/README.md does not have %q", word)
		}
	}
}

// described returns the names of detour's metrics and of their labels.
func described(registry *prometheus.Registry) (metrics, labels []string) {
	all := make(chan *prometheus.Desc)
	go func() {
		defer close(all)
		registry.Describe(all)
	}()
	parts := regexp.MustCompile(`fqName: "(detour_[a-z_]+)".*variableLabels: {([^}]*)}`)
	for d := range all {
		if m := parts.FindStringSubmatch(d.String()); m != nil {
			metrics = append(metrics, m[1])
			labels = append(labels, strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' })...)
		}
	}
	return metrics, labels
}
