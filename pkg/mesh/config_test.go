package mesh

import (
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/rules"
)

func TestEachRevisionOfIstioHasItsConfiguration(t *testing.T) {
	const key = "istio.io/rev"
	for _, tt := range []struct {
		name              string
		annotation, label string // "-" is none
		want              string
	}{
		{"neither", "-", "-", "istio"},
		{"the default revision", "default", "-", "istio"},
		{"an empty one", "", "", "istio"},
		{"a revision", "1-29", "-", "istio-1-29"},
		{"a revision that its pod asked for by a tag", "1-29", "prod", "istio-1-29"},
		{"the default revision that its pod asked for by a tag", "default", "prod", "istio"},
		{"an injector that writes the label only", "-", "canary", "istio-canary"},
		{"the default revision, by label", "-", "default", "istio"},
		{"a path", "../secrets/x", "-", "istio"},
		{"an escaped path", "..%2fsecrets", "-", "istio"},
		{"another query", "x?fieldSelector=", "-", "istio"},
		{"upper case", "Canary", "-", "istio"},
		{"too long", strings.Repeat("x", 300), "-", "istio"},
		{"too long with what stands before it", strings.Repeat("x", 250), "-", "istio"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			values := func(v string) map[string]string {
				if v == "-" {
					return nil
				}
				return map[string]string{key: v}
			}
			istio, _ := Find("istio")
			got := istio.ConfigFor(values(tt.annotation), values(tt.label))
			want := istio.Config
			want.Name = tt.want
			if got.String() != want.String() || got.Resource != want.Resource {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// Only istio has revisions, and a name that the net conf gives holds for every pod.
func TestAConfigurationThatHasNoRevisions(t *testing.T) {
	revision := map[string]string{"istio.io/rev": "canary"}
	for _, name := range Names() {
		d, _ := Find(name)
		if got := d.ConfigFor(revision, revision); name != "istio" && got.Name != d.Config.Name {
			t.Errorf("%s: %s", name, got)
		}
	}
	istio, _ := Find("istio")
	chosen, err := istio.With(Override{MeshConfig: ConfigRef{Name: "istio-1-28", Namespace: "mesh"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := chosen.ConfigFor(revision, revision).String(); got != "ConfigMap mesh/istio-1-28" {
		t.Error(got)
	}
}

func TestAMeshWithoutAConfigurationObject(t *testing.T) {
	d := osm(t)
	d.Config = ConfigRef{}
	if got := d.ConfigFor(nil, map[string]string{"istio.io/rev": "canary"}); !got.IsZero() || got.String() != "no configuration object" {
		t.Errorf("the configuration is %s, %+v", got, got)
	}
	if decision, err := d.Decide(Input{Pod: meshed(nil)}); err != nil || decision.Policy == nil || decision.Warnings != nil {
		t.Errorf("got %+v, %v", decision, err)
	}
	if _, err := d.With(Override{Container: "pipy"}); err != nil {
		t.Error(err)
	}
	for _, o := range []ConfigRef{{Name: "x"}, {Group: "x", Versions: []string{"v1"}, Resource: "x", Kind: "X", Namespace: "x", Name: "x"}} {
		if _, err := d.With(Override{MeshConfig: o}); err == nil || err.Error() != "proxy.meshConfig: mesh osm has no configuration object" {
			t.Errorf("%+v: got %v", o, err)
		}
	}
}

// osm-edge's proxy answers queries on a port of its own, which the net conf may move; the first mesh of the family has none.
func TestTheDNSListenerIsTheRows(t *testing.T) {
	dns := Override{Ports: PortsOverride{DNS: 5353}}
	edge, _ := Find("osm-edge")
	moved, err := edge.With(dns)
	if err != nil {
		t.Fatal(err)
	}
	for d, want := range map[*Dialect]uint16{&edge: 5300, &moved: 5353} {
		rs := d.Broadest().Ruleset()
		if !slices.ContainsFunc(rs.Rules, func(r rules.Rule) bool { return r.Target == rules.DNAT{Addr: localDNS, Port: want} }) {
			t.Errorf("no rule sends queries to port %d", want)
		}
	}
	if _, err := osm(t).With(dns); err == nil || err.Error() != "proxy.ports.dns: mesh osm has no such listener" {
		t.Errorf("got %v", err)
	}
}

func TestThereIsNothingToOverrideWithoutAMesh(t *testing.T) {
	if _, err := (Dialect{}).With(Override{}); err == nil {
		t.Error("a dialect without a row was accepted")
	}
}
