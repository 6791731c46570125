package certificate

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const host = "detour-webhook.detour-system.svc"

// api is an API server with one Secret and the two configurations. It serves lists and watches of what there is, and takes an update of a
// Secret only for the version that it has.
type api struct {
	*httptest.Server
	t *testing.T

	mu         sync.Mutex
	changed    *sync.Cond
	ended      bool
	version    int
	secret     *corev1.Secret
	mutating   *admissionv1.MutatingWebhookConfiguration
	validating *admissionv1.ValidatingWebhookConfiguration
	writes     []string // methods and resources
	refuse     map[string]bool
}

func newAPI(t *testing.T) *api {
	s := &api{t: t, version: 1, refuse: map[string]bool{}}
	s.changed = sync.NewCond(&s.mu)
	s.secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "detour-system", Name: "detour-webhook", UID: "u"}}
	s.mutating = &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "webhook.detour.io"},
		Webhooks: []admissionv1.MutatingWebhook{{Name: "a.detour.io"}, {Name: "b.detour.io"}}}
	s.validating = &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "webhook.detour.io"},
		Webhooks: []admissionv1.ValidatingWebhook{{Name: "c.detour.io"}}}
	s.bump()
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.change(func() { s.ended = true })
		s.Close()
	})
	return s
}

// change changes the objects, each of which then has a new version.
func (s *api) change(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	s.bump()
}

func (s *api) bump() {
	s.version++
	version := fmt.Sprint(s.version)
	if s.secret != nil {
		s.secret.ResourceVersion = version
	}
	if s.mutating != nil {
		s.mutating.ResourceVersion = version
	}
	if s.validating != nil {
		s.validating.ResourceVersion = version
	}
	s.changed.Broadcast()
}

// object is the JSON of the one object under a path, nil if there is none.
func (s *api) object(resource string) json.RawMessage {
	var o any
	switch resource {
	case "secrets":
		if s.secret == nil {
			return nil
		}
		o = struct {
			metav1.TypeMeta `json:",inline"`
			*corev1.Secret
		}{metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, s.secret}
	case "mutatingwebhookconfigurations":
		if s.mutating == nil {
			return nil
		}
		o = struct {
			metav1.TypeMeta `json:",inline"`
			*admissionv1.MutatingWebhookConfiguration
		}{metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "MutatingWebhookConfiguration"}, s.mutating}
	default:
		if s.validating == nil {
			return nil
		}
		o = struct {
			metav1.TypeMeta `json:",inline"`
			*admissionv1.ValidatingWebhookConfiguration
		}{metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "ValidatingWebhookConfiguration"}, s.validating}
	}
	data, err := json.Marshal(o)
	if err != nil {
		s.t.Error(err)
	}
	return data
}

func (s *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	resource := "secrets"
	for _, other := range []string{"mutatingwebhookconfigurations", "validatingwebhookconfigurations"} {
		if strings.Contains(r.URL.Path, other) {
			resource = other
		}
	}
	q := r.URL.Query()
	switch {
	case q.Get("sendInitialEvents") == "true":
		s.status(w, http.StatusUnprocessableEntity, "Invalid")
	case q.Get("watch") == "true" || q.Get("watch") == "1":
		s.watch(w, r, resource)
	case r.Method == http.MethodGet:
		s.list(w, resource)
	default:
		s.write(w, r, resource)
	}
}

func (s *api) status(w http.ResponseWriter, code int, reason string) {
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"message":%[1]q,"code":%d}`, reason, code)
}

func (s *api) list(w http.ResponseWriter, resource string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kinds := map[string]string{"secrets": "v1 SecretList", "mutatingwebhookconfigurations": "admissionregistration.k8s.io/v1 MutatingWebhookConfigurationList",
		"validatingwebhookconfigurations": "admissionregistration.k8s.io/v1 ValidatingWebhookConfigurationList"}
	version, kind, _ := strings.Cut(kinds[resource], " ")
	fmt.Fprintf(w, `{"apiVersion":%q,"kind":%q,"metadata":{"resourceVersion":"%d"},"items":[%s]}`, version, kind, s.version, s.object(resource))
}

func (s *api) watch(w http.ResponseWriter, r *http.Request, resource string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.object(resource)
	w.(http.Flusher).Flush()
	for !s.ended && r.Context().Err() == nil {
		now := s.object(resource)
		if string(now) != string(last) && now != nil {
			fmt.Fprintf(w, `{"type":"MODIFIED","object":%s}`+"\n", now)
			w.(http.Flusher).Flush()
			last = now
		}
		if now == nil && last != nil {
			fmt.Fprintf(w, `{"type":"DELETED","object":%s}`+"\n", last)
			w.(http.Flusher).Flush()
			last = nil
		}
		s.changed.Wait()
	}
}

// write takes an update of the Secret, or a patch of a configuration.
func (s *api) write(w http.ResponseWriter, r *http.Request, resource string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	write := r.Method + " " + resource
	s.writes = append(s.writes, write)
	if s.refuse[write] {
		s.status(w, http.StatusForbidden, "Forbidden")
		return
	}
	switch resource {
	case "secrets":
		var secret corev1.Secret
		if err == nil {
			err = json.Unmarshal(body, &secret)
		}
		if s.secret == nil || secret.ResourceVersion != s.secret.ResourceVersion {
			s.status(w, http.StatusConflict, "Conflict")
			return
		}
		s.secret = &secret
	default:
		err = s.merge(body)
	}
	if err != nil || r.Method == http.MethodPatch && r.Header.Get("Content-Type") != "application/strategic-merge-patch+json" {
		s.t.Errorf("%s %s: %v", r.Method, r.URL, err)
	}
	s.bump()
	w.Write(s.object(resource))
}

// merge does what a strategic merge patch of caBundles does: webhooks are told apart by their names.
func (s *api) merge(patch []byte) error {
	var p struct {
		Webhooks []struct {
			Name         string
			ClientConfig struct{ CABundle []byte }
		}
	}
	err := json.Unmarshal(patch, &p)
	for _, h := range p.Webhooks {
		for i := 0; s.mutating != nil && i < len(s.mutating.Webhooks); i++ {
			if s.mutating.Webhooks[i].Name == h.Name {
				s.mutating.Webhooks[i].ClientConfig.CABundle = h.ClientConfig.CABundle
			}
		}
		for i := 0; s.validating != nil && i < len(s.validating.Webhooks); i++ {
			if s.validating.Webhooks[i].Name == h.Name {
				s.validating.Webhooks[i].ClientConfig.CABundle = h.ClientConfig.CABundle
			}
		}
	}
	return err
}

// bundles are all caBundles.
func (s *api) bundles() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.mutating.Webhooks {
		all = append(all, string(h.ClientConfig.CABundle))
	}
	for _, h := range s.validating.Webhooks {
		all = append(all, string(h.ClientConfig.CABundle))
	}
	return all
}

// stored are the Secret's values.
func (s *api) stored() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	for key, value := range s.secret.Data {
		out[key] = string(value)
	}
	return out
}

// keeper makes a Keeper of the API server's.
func (s *api) keeper(edit func(*Options)) *Keeper {
	s.t.Helper()
	o := Options{
		Host: host, Namespace: "detour-system", Secret: "detour-webhook", Configuration: "webhook.detour.io",
		Timing: Timing{Settle: 300 * time.Millisecond, Check: 50 * time.Millisecond}, Log: slog.New(slog.NewTextHandler(s.t.Output(), nil)),
	}
	if edit != nil {
		edit(&o)
	}
	k, err := New(&rest.Config{Host: s.URL}, o)
	if err != nil {
		s.t.Fatal(err)
	}
	return k
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not happen: %s", what)
		}
	}
}
