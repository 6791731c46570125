//go:build kubeapi

package apitest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// right is the least that RBAC can give or take away: one verb on one resource, or on one object of it.
type right struct{ role, verb, group, resource, name string }

func (r right) String() string {
	return strings.TrimRight(fmt.Sprintf("%s: %s %s.%s %s", r.role, r.verb, r.resource, r.group, r.name), ". ")
}

// isMissedIn reports whether the text quotes the API server, as it refuses those to whom the right is missing. A log escapes quotes.
func (r right) isMissedIn(text string) bool {
	return strings.Contains(strings.ReplaceAll(text, `\"`, `"`), fmt.Sprintf("cannot %s resource %q", r.verb, r.resource))
}

// rightsOf are the rights that a Role or ClusterRole gives; other objects give none.
func rightsOf(t *testing.T, o object) (rights []right) {
	t.Helper()
	if o.GetKind() != "Role" && o.GetKind() != "ClusterRole" {
		return nil
	}
	var role rbacv1.ClusterRole
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &role); err != nil {
		t.Fatal(err)
	}
	for _, rule := range role.Rules {
		names := rule.ResourceNames
		if names == nil {
			names = []string{""}
		}
		if rule.NonResourceURLs != nil || role.AggregationRule != nil {
			t.Fatalf("%s gives what this test does not know: %v", o.GetName(), rule)
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, name := range names {
					for _, verb := range rule.Verbs {
						rights = append(rights, right{o.GetKind() + " " + o.GetName(), verb, group, resource, name})
					}
				}
			}
		}
	}
	return rights
}

// takeAway makes a role give all its rights but one.
func takeAway(t *testing.T, o object, without right) {
	t.Helper()
	rights := rightsOf(t, o)
	if !slices.Contains(rights, without) {
		return
	}
	rules := []any{}
	for _, r := range rights {
		if r == without {
			continue
		}
		rule := map[string]any{"apiGroups": []any{r.group}, "resources": []any{r.resource}, "verbs": []any{r.verb}}
		if r.name != "" {
			rule["resourceNames"] = []any{r.name}
		}
		rules = append(rules, rule)
	}
	o.Object["rules"] = rules
}

// waitForRights waits until the token's owner has all these rights in the namespace.
func waitForRights(t *testing.T, token, namespace string, rights []right) {
	t.Helper()
	var lacking []right
	for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); time.Sleep(pollTime) {
		rules := rulesIn(t, token, namespace)
		lacking = slices.DeleteFunc(slices.Clone(rights), func(r right) bool { return slices.ContainsFunc(rules, r.isIn) })
		if len(lacking) == 0 {
			return
		}
	}
	t.Fatalf("these rights do not come: %q", lacking)
}

// isIn reports whether a rule, as rulesIn has it, gives the right.
func (r right) isIn(rule string) bool {
	verbs, rest, _ := strings.Cut(rule, " [")
	group, rest, _ := strings.Cut(rest, "] [")
	resources, names, _ := strings.Cut(strings.TrimSuffix(rest, "]"), "] [")
	has := func(list, sep, one string) bool { return slices.Contains(strings.Split(list, sep), one) }
	return has(verbs, ",", r.verb) && group == r.group && has(resources, " ", r.resource) && has(names, " ", r.name)
}

// givenRights are all rights that deploy/ and the chart give.
func givenRights(t *testing.T) []right {
	t.Helper()
	whole, components := kustomizations(t)
	objects, err := readManifest("../../deploy/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range whole {
		objects = append(objects, render(t, "../../deploy/"+dir)...)
	}
	for _, component := range components {
		objects = append(objects, render(t, customize(t, []string{"overlays/osm"}, []string{component}, ""))...)
	}
	for _, admission := range []string{"none", "policies", "webhook"} {
		objects = append(objects, renderChart(t, "--namespace=detour-system", "--set=mesh=osm,repair=evict,readyNode=true,admission="+admission)...)
	}
	var rights []right
	for _, o := range objects {
		rights = append(rights, rightsOf(t, o)...)
	}
	slices.SortFunc(rights, func(a, b right) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(rights)
}

// A right that no test takes away may be one that nothing needs.
func TestEveryRightInDeployIsTakenAwayByATest(t *testing.T) {
	t.Parallel()
	taken := map[right]bool{}
	for _, tt := range agentsRights {
		taken[tt.right] = true
	}
	for _, tt := range webhooksRights {
		taken[tt.right] = true
	}
	for _, r := range pluginsRights {
		taken[r] = true
	}
	for _, o := range hookObjects(t) {
		for _, r := range rightsOf(t, o) {
			taken[r] = true // TestTheChartsHookNeedsEachOfItsRights takes whatever there is
		}
	}
	given := givenRights(t)
	for _, r := range given {
		same := r
		if r.group == "config.flomesh.io" { // FSM's MeshConfig is followed by the code that follows Open Service Mesh's
			same.group, same.name = "config.openservicemesh.io", "osm-mesh-config"
		}
		if !taken[same] {
			t.Errorf("no test takes away %s", r)
		}
	}
	for r := range taken {
		if !slices.Contains(given, r) {
			t.Errorf("a test takes away what nobody has: %s", r)
		}
	}
}
