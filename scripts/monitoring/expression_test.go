package monitoring

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// growth are the functions that take counters and nothing else.
var growth = []string{"rate", "increase", "irate"}

// check says what is wrong with an expression: a metric, a label or a value that is not exported, or a function of another type.
func (m metrics) check(text string) error {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(text)
	if err != nil {
		return err
	}
	var wrong []error
	parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
		switch n := node.(type) {
		case *parser.VectorSelector:
			wrong = append(wrong, m.checkSelector(n, path))
		case *parser.AggregateExpr:
			wrong = append(wrong, m.wantLabels(n.Expr, n.Grouping))
		case *parser.BinaryExpr:
			if n.VectorMatching != nil && n.VectorMatching.On {
				wrong = append(wrong, m.wantLabels(n.LHS, n.VectorMatching.MatchingLabels), m.wantLabels(n.RHS, n.VectorMatching.MatchingLabels))
			}
		}
		return nil
	})
	return errors.Join(wrong...)
}

func (m metrics) checkSelector(s *parser.VectorSelector, path []parser.Node) error {
	known, ok := m[s.Name]
	if !ok {
		return fmt.Errorf("nothing exports %s", s.Name)
	}
	if function := callOf(path); slices.Contains(growth, function) != known.counter {
		return fmt.Errorf("%s is a counter: %t, but its function is %q", s.Name, known.counter, function)
	}
	for _, matcher := range s.LabelMatchers {
		if matcher.Name == model.MetricNameLabel {
			continue
		}
		values, ok := known.labels[matcher.Name]
		if !ok {
			return fmt.Errorf("%s has no label %s, but %q", s.Name, matcher.Name, slices.Sorted(maps.Keys(known.labels)))
		}
		for value := range strings.SplitSeq(matcher.Value, "|") {
			if values != nil && !slices.Contains(values, value) {
				return fmt.Errorf("%s never has %s %q, but %q", s.Name, matcher.Name, value, values)
			}
		}
	}
	return nil
}

// callOf is the function that takes the innermost node's range, "" if none does.
func callOf(path []parser.Node) string {
	for _, node := range slices.Backward(path) {
		switch n := node.(type) {
		case *parser.MatrixSelector, *parser.ParenExpr:
		case *parser.Call:
			return n.Func.Name
		default:
			return ""
		}
	}
	return ""
}

// wantLabels wants that the result of an expression has these labels.
func (m metrics) wantLabels(expr parser.Expr, want []string) error {
	has := m.labelsOf(expr)
	for _, label := range want {
		if !slices.Contains(has, label) {
			return fmt.Errorf("%s has no label %s, but %q", expr, label, has)
		}
	}
	return nil
}

// labelsOf are the labels of an expression's result.
func (m metrics) labelsOf(expr parser.Expr) []string {
	switch e := expr.(type) {
	case *parser.VectorSelector:
		return slices.Sorted(maps.Keys(m[e.Name].labels))
	case *parser.MatrixSelector:
		return m.labelsOf(e.VectorSelector)
	case *parser.ParenExpr:
		return m.labelsOf(e.Expr)
	case *parser.AggregateExpr:
		return e.Grouping
	case *parser.BinaryExpr:
		if e.LHS.Type() == parser.ValueTypeScalar {
			return m.labelsOf(e.RHS)
		}
		return m.labelsOf(e.LHS)
	case *parser.Call:
		if len(e.Args) == 0 {
			return nil
		}
		found := m.labelsOf(e.Args[len(e.Args)-1])
		if e.Func.Name == "histogram_quantile" {
			found = slices.DeleteFunc(slices.Clone(found), func(label string) bool { return label == labels.BucketLabel })
		}
		return found
	}
	return nil
}

func TestTheCheckFindsMistakes(t *testing.T) {
	t.Parallel()
	m := metrics{
		"adds_total":   {true, map[string][]string{"outcome": {"failed", "allowed"}, "node": nil}},
		"ready":        {false, map[string][]string{"node": nil}},
		"stage_bucket": {true, map[string][]string{"stage": {"apply"}, "le": nil}},
	}
	for expr, want := range map[string]string{
		`sum by (node) (increase(adds_total{outcome=~"failed|allowed"}[5m])) > 0`:   "",
		`histogram_quantile(0.9, sum by (stage, le) (rate(stage_bucket[10m]))) > 1`: "",
		`ready == 0 unless on (node) (increase(adds_total[5m]) > 0)`:                "",
		`readiness == 0`:                                          "nothing exports readiness",
		`rate(ready[5m]) > 0`:                                     "ready is a counter: false",
		`adds_total > 0`:                                          "adds_total is a counter: true",
		`max_over_time(adds_total[5m]) > 0`:                       "adds_total is a counter: true",
		`increase(adds_total{result="failed"}[5m]) > 0`:           "adds_total has no label result",
		`increase(adds_total{outcome="error"}[5m]) > 0`:           `adds_total never has outcome "error"`,
		`increase(adds_total{outcome=~"failed|refused"}[5m]) > 0`: `adds_total never has outcome "refused"`,
		`sum by (pod) (ready) > 0`:                                "ready has no label pod",
		`sum(ready) unless on (node) ready`:                       "sum(ready) has no label node",
		`ready >`:                                                 "parse error",
	} {
		err := m.check(expr)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", expr, err, want)
		}
	}
}
