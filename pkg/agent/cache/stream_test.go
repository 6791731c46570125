package cache

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/testcase"
)

// decoderOf returns the decoder of a mesh's pods.
func decoderOf(t testing.TB, name string) podDecoder {
	t.Helper()
	dialect, ok := mesh.Find(name)
	if !ok {
		t.Fatalf("no dialect %s", name)
	}
	return (&Cache{Options: Options{Dialect: dialect}}).decode
}

func encode(t testing.TB, object any) string {
	t.Helper()
	data, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestAListIsReadPodByPod(t *testing.T) {
	t.Parallel()
	decode := decoderOf(t, "osm")
	a, b := encode(t, agenttest.Pod("a")), encode(t, agenttest.Pod("b"))
	tests := []struct{ text, names string }{
		{`{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7","x":{}},"items":[` + a + "," + b + `]}`, "a b"},
		{`{"items":[` + a + `],"later":[{"x":[1]}],"metadata":{"resourceVersion":"7"}}`, "a"},
		{`{"metadata":{"resourceVersion":"7"},"items":[]}`, ""},
		{`{"metadata":{"resourceVersion":"7"},"items":null}`, ""},
	}
	for _, tt := range tests {
		list, err := readPodList(strings.NewReader(tt.text), decode)
		if err != nil {
			t.Errorf("%.80s: %v", tt.text, err)
			continue
		}
		var names []string
		for _, p := range list.Items {
			names = append(names, p.Name)
		}
		if strings.Join(names, " ") != tt.names || list.ResourceVersion != "7" {
			t.Errorf("%.80s: %q, version %q", tt.text, names, list.ResourceVersion)
		}
	}
	whole := tests[0].text
	for _, text := range []string{"", "[", `"x"`, `{"items":{}}`, `{"items":[1]}`, `{"items":[{"kind":"Status"}]}`, whole[:len(whole)-1], whole[:len(whole)/2]} {
		if _, err := readPodList(strings.NewReader(text), decode); err == nil {
			t.Errorf("%.80s: no error", text)
		}
	}
}

func TestEventsAreReadOneByOne(t *testing.T) {
	t.Parallel()
	text := fmt.Sprintf(`{"type":"ADDED","object":%s}
		{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}},"spec":{"containers":null},"status":{}}}
		{"object":%s,"type":"ERROR"}
		{"type":"ADDED"`, encode(t, agenttest.Pod("a")), encode(t, agenttest.Status(410, "Expired", "too old")))
	heard := 0
	body := io.NopCloser(strings.NewReader(text))
	events := &podEvents{body: body, json: json.NewDecoder(body), decode: decoderOf(t, "osm"), heard: func() { heard++ }}
	kind, object, err := events.Decode()
	if p, ok := object.(*podObject); err != nil || kind != watch.Added || !ok || p.pod.Name != "a" {
		t.Fatalf("%s %v %v", kind, object, err)
	}
	kind, object, err = events.Decode()
	if p, ok := object.(*podObject); err != nil || kind != watch.Bookmark || !ok || p.ResourceVersion != "9" || p.Annotations["k8s.io/initial-events-end"] != "true" {
		t.Fatalf("%s %v %v", kind, object, err)
	}
	kind, object, err = events.Decode()
	if err != nil || kind != watch.Error || !apierrors.IsResourceExpired(apierrors.FromObject(object)) {
		t.Fatalf("%s %v %v", kind, object, err)
	}
	if _, _, err := events.Decode(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the end in the middle of an event: %v", err)
	}
	if heard != 3 {
		t.Errorf("%d events were heard of", heard)
	}
}

// What the cache drops must not count: each scenario has the same decision from the whole pod and from the cached one.
func TestTheTrimmedPodIsDecidedLikeTheWhole(t *testing.T) {
	t.Parallel()
	cases := testcase.Load(t, "../../..")
	for _, c := range cases {
		dialect, ok := mesh.Find(c.Mesh)
		if !ok {
			t.Fatalf("%s: no dialect", c.Name)
		}
		whole, err := yaml.YAMLToJSON([]byte(c.Section("pod.yaml")))
		if err != nil {
			t.Fatal(err)
		}
		var config []byte
		for _, section := range []string{"meshconfig.yaml"} {
			if text := c.Section(section); text != "" {
				if config, err = yaml.YAMLToJSON([]byte(text)); err != nil {
					t.Fatal(err)
				}
			}
		}
		p, err := decoderOf(t, c.Mesh)(whole)
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		decide := func(data []byte) (any, string) {
			facts, err := pod.Parse(data)
			if err != nil {
				return nil, err.Error()
			}
			d, err := dialect.Decide(mesh.Input{Pod: facts, Config: config, Addresses: []netip.Addr{netip.MustParseAddr("10.1.2.3")}})
			return d, fmt.Sprint(err)
		}
		want, wantErr := decide(whole)
		got, gotErr := decide(p.(*podObject).pod.JSON)
		if !reflect.DeepEqual(got, want) || gotErr != wantErr {
			t.Errorf("%s: the trimmed pod gives\n%+v %s, the whole\n%+v %s", c.Name, got, gotErr, want, wantErr)
		}
	}
}
