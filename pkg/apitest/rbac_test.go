//go:build kubeapi

package apitest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// The two rules of deploy/rbac.yaml, each alone, for accounts that have too little.
const (
	podsRule        = `{apiGroups: [""], resources: [pods], verbs: [get]}`
	meshConfigsRule = `{apiGroups: [config.openservicemesh.io], resources: [meshconfigs], resourceNames: [osm-mesh-config], verbs: [get]}`
)

// newAccount returns the token of a new ServiceAccount that has these rules.
func (s *scene) newAccount(rules ...string) string {
	s.t.Helper()
	name := "account-of-" + s.namespace
	s.create(fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: %s, name: %s}}", s.namespace, name))
	s.create(fmt.Sprintf("{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: %s}, rules: [%s]}", name, strings.Join(rules, ", ")))
	s.create(fmt.Sprintf(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %[1]s}
subjects: [{kind: ServiceAccount, name: %[1]s, namespace: %[2]s}]
`, name, s.namespace))
	token, err := kubernetes.token(s.namespace, name)
	if err != nil {
		s.t.Fatal(err)
	}
	// Elsewhere, so that these requests aren't taken for the plugin's.
	allowed := map[string]string{podsRule: podsOf("any") + "/any", meshConfigsRule: meshConfigsOf("any") + "/" + meshConfigName}
	for _, rule := range rules {
		if err := kubernetes.waitUntilAllowed(token, allowed[rule]); err != nil {
			s.t.Fatal(err)
		}
	}
	return token
}

func TestTheRightsInDeployAreEnoughForAnAddAndNoMore(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newScene(t, "osm/guide")
	core, pods, configs := "/api/v1/namespaces/"+s.namespace, podsOf(s.namespace), meshConfigsOf(s.mesh)
	tests := []struct {
		method, path string
		want         int
	}{
		// without these, a token that may do nothing would pass
		{"GET", pods + "/" + s.name, 200},
		{"GET", pods + "/gone", 404},
		{"GET", configs + "/osm-mesh-config", 200},
		{"GET", meshConfigsAs("v1alpha1", s.mesh) + "/osm-mesh-config", 200},

		{"GET", pods, 403},
		{"GET", pods + "?watch=true", 403},
		{"GET", "/api/v1/pods", 403},
		{"GET", pods + "/" + s.name + "/log", 403},
		{"GET", pods + "/" + s.name + "/status", 403},
		{"GET", pods + "/" + s.name + "/exec?command=id", 403},
		{"POST", pods, 403},
		{"PATCH", pods + "/" + s.name, 403},
		{"DELETE", pods + "/" + s.name, 403},

		{"GET", configs, 403},
		{"GET", configs + "?watch=true", 403},
		{"GET", configs + "/other", 403},
		{"PATCH", configs + "/osm-mesh-config", 403},
		{"DELETE", configs + "/osm-mesh-config", 403},

		{"GET", core + "/secrets", 403},
		{"GET", core + "/secrets/any", 403},
		{"GET", core + "/configmaps/any", 403},
		{"GET", core + "/serviceaccounts/default", 403},
		{"POST", "/api/v1/namespaces/detour-system/serviceaccounts/detour/token", 403},
		{"GET", core, 403},
		{"GET", "/api/v1/nodes", 403},
	}
	as := kubernetes.as(detourToken)
	for _, tt := range tests {
		if _, err := as.expect(tt.method, tt.path, nil, tt.want); err != nil {
			t.Error(err)
		}
	}
}

// What the requests above don't think of: the API server lists all that the token may do.
func TestTheTokenHasTheRightsInDeployAndThoseOfEverybody(t *testing.T) {
	t.Parallel()
	everybody := rulesOf(t, newScene(t, "osm/guide").newAccount())
	got := slices.DeleteFunc(rulesOf(t, detourToken), func(r string) bool { return slices.Contains(everybody, r) })
	want := []string{
		`get [] [pods] []`,
		`get [config.openservicemesh.io] [meshconfigs] [osm-mesh-config]`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("the token may %q, want %q", got, want)
	}
}

// rulesOf asks, as the token's owner, what it may do.
func rulesOf(t *testing.T, token string) []string { t.Helper(); return rulesIn(t, token, "default") }

// rulesIn is rulesOf for one namespace.
func rulesIn(t *testing.T, token, namespace string) []string {
	t.Helper()
	review := map[string]any{
		"apiVersion": "authorization.k8s.io/v1",
		"kind":       "SelfSubjectRulesReview",
		"spec":       map[string]any{"namespace": namespace},
	}
	body, err := kubernetes.as(token).expect(http.MethodPost, "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review, http.StatusCreated)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Status struct {
			Incomplete    bool
			ResourceRules []struct{ Verbs, APIGroups, Resources, ResourceNames []string }
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatal(err)
	}
	var rules []string
	for _, r := range answer.Status.ResourceRules {
		rules = append(rules, fmt.Sprintf("%s %v %v %v", strings.Join(r.Verbs, ","), r.APIGroups, r.Resources, r.ResourceNames))
	}
	slices.Sort(rules)
	return rules
}

func TestStatusFailsUnlessTheTokenIsGoodForAnAdd(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		token func(*scene) string
		code  uint
		words []string
	}{
		{"the rights in deploy", func(*scene) string { return detourToken }, 0, nil},
		{"no rights", func(s *scene) string { return s.newAccount() }, types.ErrPluginNotAvailable, []string{"can't serve an ADD", "403 Forbidden"}},
		{"no right to get pods", func(s *scene) string { return s.newAccount(meshConfigsRule) }, types.ErrPluginNotAvailable, []string{"get pods", "403 Forbidden"}},
		{"no right to get meshconfigs", func(s *scene) string { return s.newAccount(podsRule) }, types.ErrPluginNotAvailable, []string{"get meshconfigs", "403 Forbidden"}},
		{"a forged token", func(*scene) string { return forged(detourToken) }, types.ErrPluginNotAvailable, []string{"401 Unauthorized"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			serveMeshConfigs(t)
			s := newScene(t, "osm/guide")
			s.token = tt.token(s)
			s.wantCode("STATUS", tt.code, tt.words...)
		})
	}
}

// pluginsRights are those of deploy/rbac.yaml.
var pluginsRights = []right{
	{"ClusterRole detour", "get", "", "pods", ""},
	{"ClusterRole detour", "get", "config.openservicemesh.io", "meshconfigs", "osm-mesh-config"},
}

func TestThePluginNeedsEachOfItsRights(t *testing.T) {
	t.Parallel()
	for i, r := range pluginsRights {
		t.Run(r.String(), func(t *testing.T) {
			t.Parallel()
			serveMeshConfigs(t)
			s := newScene(t, "osm/guide")
			s.token = s.newAccount([]string{meshConfigsRule, podsRule}[i]) // the other one
			s.wantCode("ADD", 999, "403 Forbidden", fmt.Sprintf("cannot get resource %q", r.resource),
				"grant get on "+strings.TrimRight(r.resource+"."+r.group, ".")+" to the plugin's ServiceAccount (deploy/rbac.yaml)")
			s.wantUntouched()
		})
	}
}
