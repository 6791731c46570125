package decision

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/rules"
)

const web = `{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"shop","name":"web","uid":"u"},"spec":{
	"initContainers":[{"name":"migrate","securityContext":{"runAsUser":1000}}],
	"containers":[{"name":"app","securityContext":{"runAsUser":2000}},{"name":"envoy","securityContext":{"runAsUser":1500}}]}}`

func decide(t *testing.T, change func(*Options, *Input)) (Decision, error) {
	t.Helper()
	osm, _ := mesh.Find("osm")
	o := Options{Dialect: osm, ExcludeNamespaces: DefaultExclusions(osm)}
	in := Input{ID: pod.ID{Namespace: "shop", Name: "web", UID: "u"}, Pod: []byte(web), ConfigAbsent: "it is gone", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	change(&o, &in)
	return o.Decide(in)
}

// Each option and each part of the input counts.
func TestWhatTheNetConfSaysCounts(t *testing.T) {
	has := func(d Decision, why string) bool {
		for _, r := range d.Rules.Rules {
			if strings.Contains(r.Why, why) {
				return true
			}
		}
		return false
	}
	for name, c := range map[string]struct {
		change func(*Options, *Input)
		as     func(Decision) bool
	}{
		"the defaults": {func(*Options, *Input) {}, func(d Decision) bool {
			return d.Skip == "" && !d.Rules.Gated() && !has(d, "migrate") && len(d.Families) == 1 && d.Families[0] == rules.IPv4 &&
				len(d.Warnings) == 1 && d.Warnings[0] == "it is gone: the mesh's defaults hold"
		}},
		"an excluded namespace": {func(o *Options, in *Input) { o.ExcludeNamespaces, in.Pod = []string{"shop"}, nil }, func(d Decision) bool {
			return d.Skip == "namespace shop is excluded" && len(d.Rules.Rules) == 0
		}},
		"the mesh's own namespace": {func(_ *Options, in *Input) { in.ID.Namespace = "osm-system" }, func(d Decision) bool { return d.Skip != "" }},
		"no sidecar": {func(_ *Options, in *Input) { in.Pod = []byte(strings.Replace(web, "envoy", "other", 1)) }, func(d Decision) bool {
			return strings.Contains(d.Skip, "envoy") && len(d.Warnings) == 0
		}},
		"direct init containers":      {func(o *Options, _ *Input) { o.DirectInit = []string{"shop"} }, func(d Decision) bool { return has(d, `init container "migrate" goes direct`) }},
		"those of another namespace":  {func(o *Options, _ *Input) { o.DirectInit = []string{"other"} }, func(d Decision) bool { return !has(d, "migrate") }},
		"a gate":                      {func(o *Options, _ *Input) { o.Gated = true }, func(d Decision) bool { return d.Rules.Gated() }},
		"a runtime that names no UID": {func(_ *Options, in *Input) { in.ID.UID = "" }, func(d Decision) bool { return d.Skip == "" }},
		"a mesh without a configuration object": {func(o *Options, in *Input) { o.Dialect.Config, in.ConfigAbsent = mesh.ConfigRef{}, "" }, func(d Decision) bool {
			return d.Skip == "" && len(d.Rules.Rules) > 0 && len(d.Warnings) == 0
		}},
		"a configuration": {func(_ *Options, in *Input) {
			in.Config = []byte(`{"kind":"MeshConfig","spec":{"traffic":{"outboundPortExclusionList":[6379]}}}`)
		}, func(d Decision) bool { return has(d, "outboundPortExclusionList (6379)") && len(d.Warnings) == 0 }},
	} {
		if d, err := decide(t, c.change); err != nil || !c.as(d) {
			t.Errorf("%s: got %+v, %v", name, d, err)
		}
	}
}

func TestDefaultExclusions(t *testing.T) {
	osm, _ := mesh.Find("osm")
	if got := DefaultExclusions(osm); !slices.Equal(got, []string{"kube-system", "osm-system"}) {
		t.Errorf("got %q", got)
	}
	if got := DefaultExclusions(mesh.Dialect{}); !slices.Equal(got, []string{"kube-system"}) {
		t.Errorf("without a configuration object: got %q", got)
	}
}

func TestWhatIsRefused(t *testing.T) {
	for want, change := range map[string]func(*Options, *Input){
		"pod shop/web: the runtime starts UID v, but the API server has UID u": func(_ *Options, in *Input) { in.ID.UID = "v" },
		"pod shop/web: decode Pod":                    func(_ *Options, in *Input) { in.Pod = []byte("{") },
		"MeshConfig osm-system/osm-mesh-config: kind": func(_ *Options, in *Input) { in.Config = []byte("{}") },
	} {
		if _, err := decide(t, change); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// Whoever took the init container out knew another mesh, another sidecar, or other annotations. Nobody else would redirect the pod.
func TestAPodThatLostItsInitContainerIsNotLeftAlone(t *testing.T) {
	for name, tt := range map[string]struct {
		spec, annotations, want string // want is in the refusal; "" is none
	}{
		"of another mesh":              {`"nodeSelector":{"detour.io/ready":"true"},"containers":[{"name":"istio-proxy"}]`, `{}`, `because it has no container "envoy": it would run unmeshed`},
		"declined afterwards":          {`"nodeSelector":{"detour.io/ready":"true"},"containers":[{"name":"envoy"}]`, `{"openservicemesh.io/sidecar-injection":"no"}`, `sidecar-injection is "no"`},
		"meshed":                       {`"nodeSelector":{"detour.io/ready":"true"},"containers":[{"name":"envoy"}]`, `{}`, ""},
		"with the init container":      {`"nodeSelector":{"detour.io/ready":"true"},"initContainers":[{"name":"osm-init","securityContext":{"privileged":true}}],"containers":[{"name":"envoy"}]`, `{}`, ""},
		"another's, without the label": {`"nodeSelector":{"disk":"ssd"},"containers":[{"name":"istio-proxy"}]`, `{}`, ""},
		"another's, off such nodes":    {`"nodeSelector":{"detour.io/ready":"false"},"containers":[{"name":"istio-proxy"}]`, `{}`, ""},
	} {
		_, err := decide(t, func(_ *Options, in *Input) {
			in.Pod = []byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"shop","name":"web","uid":"u","annotations":` + tt.annotations + `},"spec":{` + tt.spec + `}}`)
		})
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}
