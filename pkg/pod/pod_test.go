package pod

import (
	"reflect"
	"testing"
)

func TestParseReadsTheFacts(t *testing.T) {
	got, err := Parse([]byte(`{"kind":"Pod","apiVersion":"v1",
		"metadata":{"namespace":"shop","name":"web","uid":"u","annotations":{"a":"b"},"labels":{"c":"d"}},
		"spec":{"securityContext":{"runAsUser":1000},
			"initContainers":[{"name":"migrate"},{"name":"envoy","restartPolicy":"Always","securityContext":{"runAsUser":1500}}],
			"containers":[{"name":"app","ports":[{"containerPort":8080},{"containerPort":9090}],"securityContext":{"runAsNonRoot":true}}]},
		"status":{"phase":"Pending"}}`))
	if err != nil {
		t.Fatal(err)
	}
	thousand, fifteen := int64(1000), int64(1500)
	want := Pod{
		Namespace: "shop", Name: "web", UID: "u",
		Annotations: map[string]string{"a": "b"}, Labels: map[string]string{"c": "d"},
		InitContainers: []Container{{Name: "migrate", RunAsUser: &thousand}, {Name: "envoy", RunAsUser: &fifteen, Restarts: true}},
		Containers:     []Container{{Name: "app", RunAsUser: &thousand, Ports: []uint16{8080, 9090}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if n := len(got.LongLived()); n != 2 {
		t.Errorf("%d long-lived containers, want the application and the native sidecar", n)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, data := range map[string]string{
		"no JSON":             `{`,
		"another kind":        `{"kind":"Status","apiVersion":"v1"}`,
		"another version":     `{"kind":"Pod","apiVersion":"v2","metadata":{"namespace":"a","name":"b"},"spec":{"containers":[{}]}}`,
		"no name":             `{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"a"},"spec":{"containers":[{}]}}`,
		"no container":        `{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"a","name":"b"}}`,
		"a port that is none": `{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"a","name":"b"},"spec":{"containers":[{"ports":[{"containerPort":70000}]}]}}`,
	} {
		if p, err := Parse([]byte(data)); err == nil {
			t.Errorf("%s: accepted as %+v", name, p)
		}
	}
}

func TestAStaticPodGoesByTheUIDOfItsManifest(t *testing.T) {
	mirror := Pod{UID: "api", Annotations: map[string]string{MirrorAnnotation: "manifest"}}
	for uid, want := range map[string]bool{"api": true, "manifest": true, "other": false, "": false} {
		if got := mirror.HasUID(uid); got != want {
			t.Errorf("UID %q: %v, want %v", uid, got, want)
		}
	}
}

func TestWhoMayProgramThePodsNetwork(t *testing.T) {
	for context, want := range map[string]bool{
		`{}`: false,
		`{"privileged":false,"capabilities":{"add":["NET_ADMIN"]}}`:              true,
		`{"capabilities":{"add":["NET_RAW","NET_ADMIN"],"drop":["ALL"]}}`:        true,
		`{"capabilities":{"add":["ALL"]}}`:                                       true,
		`{"privileged":true}`:                                                    true,
		`{"privileged":false,"capabilities":{"drop":["NET_ADMIN"]}}`:             false,
		`{"runAsUser":0,"allowPrivilegeEscalation":true,"capabilities":null}`:    false,
		`{"capabilities":{"add":["NET_BIND_SERVICE","NET_RAW"],"drop":["ALL"]}}`: false,
	} {
		got, err := Parse([]byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"shop","name":"web"},
			"spec":{"initContainers":[{"name":"osm-init","securityContext":` + context + `}],"containers":[{"name":"app"}]}}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := got.InitContainers[0].NetAdmin; got != want {
			t.Errorf("%s: %v, want %v", context, got, want)
		}
	}
}
