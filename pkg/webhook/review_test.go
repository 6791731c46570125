package webhook

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
)

// world is a handler for mesh osm in a cluster with or without native sidecars, and what it was asked and has told.
type world struct {
	*Reviews
	mu      sync.Mutex
	done    []string
	refused []string
}

func newWorld(t testing.TB, native bool) *world {
	t.Helper()
	dialect, ok := mesh.Find("osm")
	if !ok {
		t.Fatal("there is no mesh osm")
	}
	w := &world{}
	w.Reviews = NewReviews(Judge{
		Options:  decision.Options{Dialect: dialect, ExcludeNamespaces: decision.DefaultExclusions(dialect)},
		ConfigOf: func(mesh.ConfigRef) ([]byte, string) { return []byte(`{"kind":"MeshConfig","spec":{}}`), "" },
		Sidecars: func() (bool, string) { return native, "the cluster is old" },
	}, Observer{
		Done: func(path, verdict string, _ time.Duration) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.done = append(w.done, path+" "+verdict)
		},
		Refused: func(path string, r *admissionv1.AdmissionRequest, sentence string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.refused = append(w.refused, path+" "+r.Namespace+"/"+nameOf(r)+": "+sentence)
		},
	})
	return w
}

func (w *world) post(path, body string) *httptest.ResponseRecorder {
	answer := httptest.NewRecorder()
	w.ServeHTTP(answer, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
	return answer
}

const (
	injected = `{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"shop","name":"web"%s},"spec":{` +
		`"initContainers":[{"name":"osm-init","securityContext":{"capabilities":{"add":["NET_ADMIN"]}}}],` +
		`"containers":[{"name":"app"},{"name":"envoy","securityContext":{"runAsUser":1500}}]}}`
	malformed = `,"annotations":{"openservicemesh.io/inbound-port-exclusion-list":"0"}`
)

// without is a pod without the mesh's init container.
func without(metadata string) string {
	return strings.Replace(fmt.Sprintf(injected, metadata), "osm-init", "other", 1)
}

func reviewOf(kind, object string) string {
	return fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1","namespace":"shop",`+
		`"operation":"CREATE","kind":{"group":"","version":"v1","kind":%q},"object":%s}}`, kind, object)
}

func TestWhatIsAnswered(t *testing.T) {
	t.Parallel()
	const sentence = `pod shop/web: openservicemesh.io/inbound-port-exclusion-list: entry 1 "0": a port is 1 to 65535`
	deployment := `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"namespace":"shop","name":"web"},"spec":{"template":` + without(malformed) + `}}`
	for _, tt := range []struct {
		path, kind, object string
		old                bool // the cluster has no native sidecars
		verdict            string
		ops                string // of the patch
		denial             string
		warning            string // what the first one begins with
	}{
		{"/remove-init", "Pod", fmt.Sprintf(injected, ""), false, "patched", "remove /spec/initContainers/0, add /spec/nodeSelector", "", ""},
		{"/remove-init", "Pod", `{"apiVersion":"v1","kind":"Pod","spec":{"containers":[{"name":"app"}]}}`, false, "allowed", "", "", ""},
		{"/native-sidecar", "Pod", fmt.Sprintf(injected, ""), false, "patched",
			"remove /spec/initContainers/0, move /spec/initContainers/0, add /spec/initContainers/0/restartPolicy, add /spec/nodeSelector", "", ""},
		{"/native-sidecar", "Pod", fmt.Sprintf(injected, ""), true, "patched", "remove /spec/initContainers/0, add /spec/nodeSelector", "",
			"pod shop/web: its sidecar is no native one, as the cluster is old: only the mesh's init container was removed"},
		{"/native-sidecar", "Pod", `{"apiVersion":"v1","kind":"Pod","spec":{"containers":[{"name":"app"}]}}`, true, "allowed", "", "", ""},
		{"/check/enforce", "Pod", without(malformed), false, "denied", "", sentence, ""},
		{"/check/warn", "Pod", without(malformed), false, "warned", "", "", "it will not start: " + sentence},
		{"/check/enforce", "Pod", without(""), false, "allowed", "", "", ""},
		{"/check/template", "Deployment", deployment, false, "warned", "", "", "Deployment web: its pods would not start"},
		{"/check/template", "Deployment", `{"kind":"Deployment","spec":{"template":3}}`, false, "warned", "", "", "decode a workload: "},
		{"/check/template", "ConfigMap", `{"kind":"ConfigMap"}`, false, "warned", "", "", `decode a workload: "ConfigMap" is none of CronJob, `},
		{"/check/config", "ConfigMap", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"namespace":"shop","name":"other"}}`, false, "allowed", "", "", ""},
		{"/check/config", "MeshConfig", `{"apiVersion":"config.openservicemesh.io/v1alpha2","kind":"MeshConfig","metadata":{"namespace":"osm-system","name":"osm-mesh-config"},` +
			`"spec":{"traffic":{"inboundPortExclusionList":[0]}}}`, false, "denied", "",
			`MeshConfig osm-system/osm-mesh-config: spec.traffic.inboundPortExclusionList: entry 1 "0": a port is 1 to 65535`, ""},
		{"/check/config", "MeshConfig", "null", false, "allowed", "", "", ""},
		{"/remove-init", "ConfigMap", `{}`, false, "denied", "", `detour's webhook was sent a "ConfigMap": its webhook configuration has other rules than its manifests`, ""},
		{"/remove-init", "Pod", `{"metadata":{"generateName":"web-"}}`, false, "denied", "", `Pod shop/web-: decode Pod: got "" of "", want "Pod" of "v1"`, ""},
	} {
		w := newWorld(t, !tt.old)
		recorder := w.post(tt.path, reviewOf(tt.kind, tt.object))
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(recorder.Body.Bytes(), &review); err != nil || recorder.Code != http.StatusOK || review.Response == nil {
			t.Errorf("%s %s: %d %s", tt.path, tt.kind, recorder.Code, recorder.Body)
			continue
		}
		got := review.Response
		denial, warning := "", strings.Join(append(got.Warnings, "")[:1], "")
		if got.Result != nil {
			denial = got.Result.Message
		}
		if got.UID != "u-1" || review.Kind != "AdmissionReview" || review.APIVersion != "admission.k8s.io/v1" || got.Allowed != (tt.denial == "") {
			t.Errorf("%s: %s", tt.path, recorder.Body)
		}
		if ops := opsOf(t, got); denial != tt.denial || ops != tt.ops || !strings.HasPrefix(warning, tt.warning) || (warning == "") != (tt.warning == "") {
			t.Errorf("%s %s: ops %q, denial %q, warning %q\nwant %q, %q and %q", tt.path, tt.kind, ops, denial, warning, tt.ops, tt.denial, tt.warning)
		}
		if want := tt.path + " " + tt.verdict; len(w.done) != 1 || w.done[0] != want {
			t.Errorf("counted as %q, want %q", w.done, want)
		}
		if (len(w.refused) == 1) != (tt.denial != "") {
			t.Errorf("%s: logged %q", tt.path, w.refused)
		}
		if denial != "" && got.Result.Code != http.StatusForbidden {
			t.Errorf("%s: code %d", tt.path, got.Result.Code)
		}
	}
}

// istio redirects the family of the pod's first address, unless the proxy is told to serve both.
func TestTheWebhooksOwnAddressesTellTheFamiliesOfAllPods(t *testing.T) {
	t.Parallel()
	istio, _ := mesh.Find("istio")
	request := &admissionv1.AdmissionRequest{Namespace: "shop", Name: "web"}
	request.Object.Raw = []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"shop","name":"web","annotations":{"sidecar.istio.io/status":"{}"}},` +
		`"spec":{"containers":[{"name":"app"},{"name":"istio-proxy","securityContext":{"runAsUser":1337}}]}}`)
	for _, tt := range []struct {
		addresses []netip.Addr
		want      string // what the only warning begins with
	}{
		{nil, "if the pod gets addresses of both families: "},
		{[]netip.Addr{netip.MustParseAddr("10.0.0.1")}, ""},
		{[]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, "the pod has addresses of both families"},
	} {
		a, err := Judge{
			Options:   decision.Options{Dialect: istio},
			Addresses: tt.addresses,
			ConfigOf:  func(mesh.ConfigRef) ([]byte, string) { return []byte(`{"kind":"ConfigMap"}`), "" },
		}.check(request)
		if got := strings.Join(a.Warnings, "; "); err != nil || !strings.HasPrefix(got, tt.want) || (got == "") != (tt.want == "") {
			t.Errorf("with addresses %v: warnings %q, error %v, want %q", tt.addresses, got, err, tt.want)
		}
	}
}

// opsOf names the operations of the patch.
func opsOf(t *testing.T, r *admissionv1.AdmissionResponse) string {
	t.Helper()
	if r.Patch == nil {
		return ""
	}
	var ops []struct{ Op, Path string }
	if err := json.Unmarshal(r.Patch, &ops); err != nil || r.PatchType == nil || *r.PatchType != admissionv1.PatchTypeJSONPatch {
		t.Errorf("%v: %s", err, r.Patch)
	}
	var words []string
	for _, o := range ops {
		words = append(words, o.Op+" "+o.Path)
	}
	return strings.Join(words, ", ")
}

func TestWhatIsNoReviewGetsOneSentence(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		method, path, body string
		code               int
		want, counted      string
	}{
		"garbage":         {"POST", "/remove-init", "garbage", 400, "the review can't be decoded: invalid character 'g'", "/remove-init malformed"},
		"nothing":         {"POST", "/remove-init", "", 400, "the review can't be decoded: unexpected end of JSON input", "/remove-init malformed"},
		"another kind":    {"POST", "/remove-init", `{"apiVersion":"v1","kind":"Pod"}`, 400, `it is a "Pod" of "v1", not an AdmissionReview of admission.k8s.io/v1`, "/remove-init malformed"},
		"v1beta1":         {"POST", "/remove-init", `{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}`, 400, `it is a "AdmissionReview" of "admission.k8s.io/v1beta1", not`, "/remove-init malformed"},
		"no request":      {"POST", "/remove-init", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, 400, "the AdmissionReview has no request", "/remove-init malformed"},
		"no uid":          {"POST", "/remove-init", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}`, 400, "the AdmissionReview's request has no uid", "/remove-init malformed"},
		"too long":        {"POST", "/remove-init", `{"apiVersion":"` + strings.Repeat("x", maxReview) + `"}`, 413, "the review is longer than 8388608 bytes", "/remove-init malformed"},
		"too many values": {"POST", "/remove-init", reviewOf("Pod", `{"apiVersion":"v1","kind":"Pod","spec":{"containers":[`+strings.Repeat("{},", maxValues)+`{}]}}`), 413, "the review has more than 50000 values", "/remove-init malformed"},
		"a GET":           {"GET", "/remove-init", "", 405, "a review is a POST, not a GET", "/remove-init malformed"},
		"no such path":    {"POST", "/remove_init", "", 404, `"/remove_init" is none of the webhook's paths /check/config, /check/enforce,`, "other malformed"},
	} {
		w, answer := newWorld(t, true), httptest.NewRecorder()
		w.ServeHTTP(answer, httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body)))
		text := answer.Body.String()
		if answer.Code != tt.code || !strings.HasPrefix(text, tt.want) || strings.Count(text, "\n") != 1 || len(text) > 300 {
			t.Errorf("%s: %d %.300q, want %d %q", name, answer.Code, text, tt.code, tt.want)
		}
		if len(w.done) != 1 || w.done[0] != tt.counted {
			t.Errorf("%s: counted as %q", name, w.done)
		}
	}
}

// A review that waits for its turn leaves when its client has gone.
func TestOnlySoManyReviewsAreReadAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, true)
	for range maxReviews {
		w.slots <- struct{}{}
	}
	request := httptest.NewRequest(http.MethodPost, "/remove-init", failingReader{t}).WithContext(canceled(t))
	request.ContentLength = smallReview
	w.ServeHTTP(httptest.NewRecorder(), request)
	<-w.slots
	if got := w.post("/remove-init", reviewOf("Pod", fmt.Sprintf(injected, ""))); got.Code != http.StatusOK || len(w.slots) != maxReviews-1 {
		t.Errorf("%d, %d slots are taken", got.Code, len(w.slots))
	}
}

// Of large reviews one is judged at a time, and the small ones don't wait for it.
func TestOneLargeReviewAtATime(t *testing.T) {
	t.Parallel()
	small := reviewOf("Pod", fmt.Sprintf(injected, ""))
	padded := func(text string) string { return reviewOf("Pod", fmt.Sprintf(injected, `,"labels":{"a":"`+text+`"}`)) }
	for name, large := range map[string]string{"long": padded(strings.Repeat("x", smallReview)), "with many values": padded(strings.Repeat(",", smallValues))} {
		w := newWorld(t, true)
		w.large <- struct{}{}
		answer := httptest.NewRecorder()
		w.ServeHTTP(answer, httptest.NewRequest(http.MethodPost, "/remove-init", strings.NewReader(large)).WithContext(canceled(t)))
		if got := w.post("/remove-init", small); answer.Code != http.StatusInternalServerError || got.Code != http.StatusOK {
			t.Errorf("%s: %d beside another, and a small one %d", name, answer.Code, got.Code)
		}
		<-w.large
		if got := w.post("/remove-init", large); got.Code != http.StatusOK || len(w.large)+len(w.slots) > 0 {
			t.Errorf("%s: %d alone, %d and %d are taken", name, got.Code, len(w.large), len(w.slots))
		}
	}
}

// failingReader is a body that nobody may read.
type failingReader struct{ t *testing.T }

func (f failingReader) Read([]byte) (int, error) {
	f.t.Error("a review was read that had to wait")
	return 0, http.ErrBodyNotAllowed
}

func FuzzReview(f *testing.F) {
	w := newWorld(f, true)
	for _, object := range []string{fmt.Sprintf(injected, malformed), "null", "[]", `{"spec":{"template":{}}}`, `{"spec":{"jobTemplate":{}}}`} {
		for _, kind := range []string{"Pod", "Deployment", "CronJob", "MeshConfig"} {
			f.Add([]byte(reviewOf(kind, object)))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for path := range w.paths {
			answer := w.post(path, string(data))
			var review admissionv1.AdmissionReview
			switch {
			case answer.Code == http.StatusBadRequest:
			case answer.Code != http.StatusOK || json.Unmarshal(answer.Body.Bytes(), &review) != nil || review.Response == nil || review.Response.UID == "":
				t.Errorf("%s: %d %s", path, answer.Code, answer.Body)
			case review.Response.Allowed == (review.Response.Result != nil):
				t.Errorf("%s: %s", path, answer.Body)
			}
		}
	})
}
