package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/pod"
)

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
	decode := newPodCache(osm(t), nil).decode
	a, b := encode(t, testPod("a")), encode(t, testPod("b"))
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
		{"type":"ADDED"`, encode(t, testPod("a")), encode(t, status(410, "Expired", "too old")))
	body := io.NopCloser(strings.NewReader(text))
	events := &podEvents{body: body, json: json.NewDecoder(body), decode: newPodCache(osm(t), nil).decode}
	kind, object, err := events.Decode()
	if p, ok := object.(*podObject); err != nil || kind != watch.Added || !ok || p.entry.name != "a" {
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
}

// longPod is a pod of which even what a mesh reads is longer than what is kept.
func longPod(name string) fields {
	p := testPod(name)
	p["metadata"].(fields)["annotations"] = fields{"openservicemesh.io/outbound-port-exclusion-list": strings.Repeat("6379, ", mostKept/5) + "6379"}
	return p
}

func TestALongPodIsAskedForAndNotKept(t *testing.T) {
	t.Parallel()
	s, a, _ := startServed(t, func(c *Config) { c.ExcludeNamespaces = []string{"shop"} })
	wordy := testPod("wordy")
	wordy["spec"].(fields)["containers"] = []fields{
		{"name": "app", "env": []fields{{"name": "LONG", "value": strings.Repeat("x", 2*mostKept)}}, "args": []string{strings.Repeat("x", 2*mostKept)}}, {"name": "envoy"},
	}
	s.put(podPath("shop", "wordy"), wordy)
	s.put(podPath("shop", "long"), longPod("long"))
	eventually(t, "the pods are there", func() bool { return len(a.pods.list()) == 3 })
	for name, live := range map[string]int{"a": 0, "wordy": 0, "long": 1} {
		answer := ask(t, a, name, "uid-"+name)
		p, err := pod.Parse(answer.Pod)
		if err != nil || p.Name != name || len(answer.Config) == 0 {
			t.Errorf("%s: %v %.200s", name, err, answer.Pod)
		}
		if n := s.count("GET " + podPath("shop", name)); n != live {
			t.Errorf("%s was asked for %d times, want %d", name, n, live)
		}
	}
	if answer := ask(t, a, "wordy", ""); len(answer.Pod) == 0 || len(answer.Pod) > 1000 { // without a UID the cache can't be trusted
		t.Errorf("a live answer has %d bytes: %.200s", len(answer.Pod), answer.Pod)
	}
	kept := 0
	for _, e := range a.pods.list() {
		kept += len(e.json)
	}
	if kept > 2000 {
		t.Errorf("%d bytes are kept of three pods", kept)
	}
}

// A pod is not hidden by its length, nor does one that can't be asked for hide others.
func TestALongPodThatRunsWithoutRedirectionIsFound(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t)
	s.put(podPath("shop", "long"), longPod("long"))
	unknown := longPod("unknown")
	s.put(podPath("shop", "unknown"), unknown)
	s.refuse["GET "+podPath("shop", "unknown")] = refusal(http.StatusForbidden, "Forbidden")
	s.put(podPath("shop", "short"), testPod("short"))
	s.put(configPath, testConfig())
	a := lookOnce(newTestAgent(t, s, nil))
	start(t, a)
	eventually(t, "the first list", a.isSynced)
	if got := found(t, a); strings.Join(got, " ") != "long short" {
		t.Errorf("found %q", got)
	}
}

func TestWhatWaitsToBeWrittenIsShort(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t, newAPIServer(t), nil)
	long := strings.Repeat("x", 1<<20)
	a.report(agentapi.Report{ID: pod.ID{Namespace: "shop", Name: "a", UID: long}, Outcome: "failed", Code: agentapi.CodeRefused, Reason: long})
	if e := <-a.events.queue; len(e.message) > eventLength || len(e.uid) > uidLength {
		t.Errorf("%d bytes of message, %d of UID", len(e.message), len(e.uid))
	}
	save(t, a, attachment.Record{Key: attachment.Key{Network: "one", ContainerID: "1"}, Pod: "shop/a", Outcome: attachment.Allowed, Reason: long, Payload: []byte(`"` + long + `"`)})
	records, err := a.records()
	if err != nil || len(records) != 1 || len(records[0].Reason) > eventLength || records[0].Payload != nil {
		t.Errorf("%v, %d records of which the first has a reason of %d bytes", err, len(records), len(records[0].Reason))
	}
}
