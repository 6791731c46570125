package doctor

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func find(name Kind) (feature, bool) {
	i := slices.IndexFunc(features, func(f feature) bool { return f.name == name })
	if i < 0 {
		return feature{}, false
	}
	return features[i], true
}

// typesOf lists the types of package rules that have a method, which is how it marks matches and targets.
func typesOf(t *testing.T, method string) []string {
	t.Helper()
	files, err := filepath.Glob("../rules/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil && f.Name.Name == method {
				all = append(all, f.Recv.List[0].Type.(*ast.Ident).Name)
			}
		}
	}
	if len(all) < 10 {
		t.Fatalf("package rules has only %q with %s()", all, method)
	}
	return all
}

func typeName(v any) string {
	return strings.TrimPrefix(strings.TrimPrefix(fmt.Sprintf("%T", v), "rules."), "*")
}

// A match or a target that no feature tries would be missed on every node.
func TestEveryMatchAndTargetIsTried(t *testing.T) {
	var tried []string
	for _, f := range features {
		for _, r := range f.rs.Rules {
			tried = append(tried, typeName(r.Target))
			for _, m := range r.Matches {
				tried = append(tried, typeName(m))
			}
		}
	}
	for _, name := range slices.Concat(typesOf(t, "match"), typesOf(t, "target")) {
		if !slices.Contains(tried, name) {
			t.Errorf("no feature tries rules.%s", name)
		}
	}
	for _, table := range rules.Tables {
		if _, ok := find(kindOfTable(table)); !ok {
			t.Errorf("no feature tries table %s", table)
		}
	}
}

// A feature that has no rule of its kind would find out nothing.
func TestEveryFeatureTriesItsKind(t *testing.T) {
	for _, f := range features {
		if f.name != Redirected && !slices.Contains(kindsOf(f.rs), f.name) {
			t.Errorf("%s tries only %q", f.name, kindsOf(f.rs))
		}
		if f.nft.what == "" || f.nft.since == "" || !f.rs.Gated() && (f.xt.what == "" || f.xt.since == "") {
			t.Errorf("%s does not say what it needs", f.name)
		}
		for _, family := range rules.Families {
			if f.name != Redirected && len(f.rs.Rules) > 0 && !slices.ContainsFunc(f.rs.Rules, func(r rules.Rule) bool { return r.Concerns(family) }) {
				t.Errorf("%s tries nothing in %s", f.name, family)
			}
		}
	}
}

// The table says whose pods need what, and the scenarios prove it: what a mesh's rules have is tried, and is said to be that mesh's.
func TestFeaturesBelongToTheMeshesThatHaveThem(t *testing.T) {
	users := map[Kind][]string{}
	for _, c := range testcase.Load(t, "../..") {
		decided, err := c.Decide(t)
		if err != nil || decided.Skip != "" {
			continue
		}
		for _, k := range kindsOf(decided.Rules) {
			if !slices.Contains(users[k], c.Mesh) {
				users[k] = append(users[k], c.Mesh)
			}
		}
	}
	for k, meshes := range users {
		f, ok := find(k)
		if !ok {
			t.Errorf("%s, which %q need, is no feature", k, meshes)
		}
		for _, m := range meshes {
			if said, _ := f.neededBy(m); !said {
				t.Errorf("%s is not said to be for %s, which has it", k, m)
			}
		}
	}
	for _, f := range features {
		if f.name != Redirected && users[f.name] == nil {
			t.Errorf("no scenario has %s", f.name)
		}
	}
}

// "every pod" means what it says, for each mesh that is named with it.
func TestWhatEveryPodNeeds(t *testing.T) {
	plans, err := defaultPlans(mesh.Names())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range plans {
		rs, err := p.ruleset()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range features {
			name := p.options.Dialect.Name
			_, said := f.neededBy(name)
			if f.name != Redirected && said != slices.Contains(kindsOf(rs), f.name) {
				t.Errorf("%s, %s: it is said to be for %s", name, f.name, f.use)
			}
		}
	}
}
