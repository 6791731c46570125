package monitoring

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

const component = "../../deploy/components/monitoring/"

// alert is a rule of Prometheus.
type alert struct {
	Alert, Expr         string
	Labels, Annotations map[string]string
}

// rules is the spec of a PrometheusRule, which is a file of rules.
type rules struct {
	Groups []struct{ Rules []alert }
}

// unitTests are a file that promtool runs.
type unitTests struct {
	Tests []struct {
		InputSeries   []struct{ Series string } `json:"input_series"`
		AlertRuleTest []struct {
			Alertname string
			ExpAlerts []any `json:"exp_alerts"`
		} `json:"alert_rule_test"`
	}
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	must(t, yaml.Unmarshal(text, into))
}

// spec is the PrometheusRule's, as YAML, and parsed.
func spec(t *testing.T) (string, []alert) {
	t.Helper()
	var object struct{ Spec json.RawMessage }
	readYAML(t, component+"rules.yaml", &object)
	var r rules
	must(t, json.Unmarshal(object.Spec, &r))
	var all []alert
	for _, group := range r.Groups {
		all = append(all, group.Rules...)
	}
	return string(object.Spec), all
}

// files are those of the unit tests.
func files(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("../../testdata/monitoring/*.yaml")
	must(t, err)
	if len(found) == 0 {
		t.Fatal("there are no unit tests")
	}
	return found
}

// TestTheUnitTestsOfTheAlerts has promtool check the rules and run the unit tests, of which each alert has one that fires and one that
// does not.
func TestTheUnitTestsOfTheAlerts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text, alerts := spec(t)
	must(t, os.WriteFile(dir+"/whole.yml", []byte(text), 0o600)) // JSON is YAML
	promtool(t, dir, "check", "rules", "--lint=all", "--lint-fatal", "whole.yml")
	must(t, os.WriteFile(dir+"/rules.yml", onlySummaries(t, text), 0o600))
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, file := range files(t) {
		var tests unitTests
		readYAML(t, file, &tests)
		for _, test := range tests.Tests {
			for _, a := range test.AlertRuleTest {
				if len(a.ExpAlerts) > 0 {
					fires[a.Alertname] = true
				} else {
					silent[a.Alertname] = true
				}
			}
		}
		content, err := os.ReadFile(file)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, filepath.Base(file)), content, 0o600))
		promtool(t, dir, "test", "rules", filepath.Base(file))
	}
	for _, a := range alerts {
		if !fires[a.Alert] || !silent[a.Alert] {
			t.Errorf("%s: a unit test has it fire: %t, not fire: %t", a.Alert, fires[a.Alert], silent[a.Alert])
		}
	}
}

// onlySummaries are the rules without the annotations that unit tests would have to repeat.
func onlySummaries(t *testing.T, spec string) []byte {
	t.Helper()
	var r struct {
		Groups []struct {
			Name  string           `json:"name"`
			Rules []map[string]any `json:"rules"`
		} `json:"groups"`
	}
	must(t, json.Unmarshal([]byte(spec), &r))
	for _, group := range r.Groups {
		for _, rule := range group.Rules {
			annotations := rule["annotations"].(map[string]any)
			delete(annotations, "description")
			delete(annotations, "runbook_url")
		}
	}
	text, err := json.Marshal(r)
	must(t, err)
	return text
}

func promtool(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command(os.Getenv("PROMTOOL"), args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestAlertsAndDashboardUseWhatIsExported holds every expression, and every series of the unit tests, against what real programs
// export.
func TestAlertsAndDashboardUseWhatIsExported(t *testing.T) {
	t.Parallel()
	exported := maps.Clone(kubeStateMetrics)
	exported.add(t, "detour-agent", serveAgent(t))
	exported.add(t, "detour-webhook", serveWebhook(t))
	_, alerts := spec(t)
	for _, a := range alerts {
		if err := exported.check(a.Expr); err != nil {
			t.Errorf("%s: %v", a.Alert, err)
			continue
		}
		if err := exported.checkTemplates(a); err != nil {
			t.Errorf("%s: %v", a.Alert, err)
		}
	}
	for title, expr := range panels(t) {
		if err := exported.check(expr); err != nil {
			t.Errorf("panel %q: %v", title, err)
		}
	}
	for _, file := range files(t) {
		var tests unitTests
		readYAML(t, file, &tests)
		for _, test := range tests.Tests {
			for _, input := range test.InputSeries {
				if err := exported.checkSeries(input.Series); err != nil {
					t.Errorf("%s: %v", file, err)
				}
			}
		}
	}
}

// checkTemplates wants that the alert has the labels that its sentences name.
func (m metrics) checkTemplates(a alert) error {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(a.Expr)
	if err != nil {
		return err
	}
	var named []string
	for _, sentence := range a.Annotations {
		for _, found := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(sentence, -1) {
			named = append(named, found[1])
		}
	}
	return m.wantLabels(expr, named)
}

// checkSeries wants that a series of a unit test has exported labels, and all those of the metric itself.
func (m metrics) checkSeries(text string) error {
	series, err := parser.NewParser(parser.Options{}).ParseMetric(text)
	if err != nil {
		return err
	}
	name := series.Get(model.MetricNameLabel)
	known, ok := m[name]
	if !ok {
		return fmt.Errorf("nothing exports %s", name)
	}
	var wrong error
	series.Range(func(l labels.Label) {
		values, ok := known.labels[l.Name]
		if l.Name != model.MetricNameLabel && (!ok || values != nil && !slices.Contains(values, l.Value)) {
			wrong = fmt.Errorf("%s: %s never has %s=%q", text, name, l.Name, l.Value)
		}
	})
	for label, values := range known.labels {
		if (values != nil && label != "job" || label == "le") && !series.Has(label) {
			wrong = fmt.Errorf("%s lacks the label %s", text, label)
		}
	}
	return wrong
}

// panels are the dashboard's expressions by the titles of their panels, with Grafana's variables filled in.
func panels(t *testing.T) map[string]string {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	readYAML(t, component+"dashboard.json", &dashboard)
	found := map[string]string{}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			found[panel.Title] = strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
		}
	}
	if len(found) != len(dashboard.Panels) {
		t.Errorf("%d panels have %d titles with an expression", len(dashboard.Panels), len(found))
	}
	return found
}

// TestEachAlertLeadsToItsRunbook wants what every alert must have, and that its link leads to a section of the page.
func TestEachAlertLeadsToItsRunbook(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../deploy/TROUBLESHOOTING.md")
	must(t, err)
	var sections []string
	for _, m := range regexp.MustCompile(`(?m)^### (Detour\w+)$`).FindAllStringSubmatch(string(page), -1) {
		sections = append(sections, m[1])
	}
	const url = "https://github.com/detour-cni/detour/blob/main/deploy/TROUBLESHOOTING.md#"
	_, alerts := spec(t)
	var names []string
	for _, a := range alerts {
		names = append(names, a.Alert)
		if !slices.Contains([]string{"critical", "warning"}, a.Labels["severity"]) {
			t.Errorf("%s has the severity %q", a.Alert, a.Labels["severity"])
		}
		if a.Annotations["summary"] == "" || a.Annotations["description"] == "" || a.Annotations["runbook_url"] != url+strings.ToLower(a.Alert) {
			t.Errorf("%s has the annotations %q", a.Alert, a.Annotations)
		}
	}
	if !slices.Equal(names, sections) {
		t.Errorf("the alerts are %q\nand the runbook's sections %q", names, sections)
	}
}
