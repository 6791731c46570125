//go:build kubeapi

package apitest

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/detour-cni/detour/pkg/apitest/injector"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/webhook"
)

// The injectors of the test's webhook server, by the value of the namespace label "inject". Each adds what its mesh adds to a
// pod, so far as it matters here: the init container last, the sidecar last.
var injectors = map[string]injector.Webhook{
	"osm": {Init: "{name: osm-init, image: init, " + osmInitContext + "}", Sidecar: osmSidecar},
	// a sidecar that the Pod Security Standard restricted has nothing against
	"osm-strict": {
		Init:    "{name: osm-init, image: init, " + osmInitContext + "}",
		Sidecar: strings.Replace(osmSidecar, "runAsUser: 1500", "runAsUser: 1500, "+strict, 1),
	},
	"osm-again": {Init: "{name: osm-init, image: init, " + osmInitContext + "}", Sidecar: osmSidecar},
	"fsm": {
		Init:    "{name: fsm-init, image: init, " + osmInitContext + "}",
		Sidecar: "{name: sidecar, image: pipy, securityContext: {runAsUser: 1500}}",
	},
	"istio": {
		Init:    "{name: istio-init, image: proxy, securityContext: {runAsUser: 0, capabilities: {add: [NET_ADMIN, NET_RAW], drop: [ALL]}}}",
		Sidecar: "{name: istio-proxy, image: proxy, securityContext: {runAsUser: 1337, " + strict + "}, startupProbe: {httpGet: {path: /healthz/ready, port: 15021}}}",
	},
	// with native sidecars switched on, not at the head
	"istio-native": {
		Init:    "{name: istio-init, image: proxy, securityContext: {runAsUser: 0, capabilities: {add: [NET_ADMIN, NET_RAW], drop: [ALL]}}}",
		Sidecar: "{name: istio-proxy, image: proxy, restartPolicy: Always, securityContext: {runAsUser: 1337, " + strict + "}}",
		Native:  true,
	},
	"istio-again": {
		Init:    "{name: istio-init, image: proxy, securityContext: {runAsUser: 0, capabilities: {add: [NET_ADMIN, NET_RAW], drop: [ALL]}}}",
		Sidecar: "{name: istio-proxy, image: proxy, securityContext: {runAsUser: 1337}}",
		Again:   true,
	},
}

const (
	osmInitContext = "securityContext: {privileged: false, runAsUser: 0, runAsNonRoot: false, capabilities: {add: [NET_ADMIN]}}"
	strict         = "runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}"
	osmSidecar     = "{name: envoy, image: envoy, securityContext: {runAsUser: 1500}}"
)

// serveAdmission installs the webhooks and deploy/'s policies. The server ends with the process.
func serveAdmission() error {
	mux := http.NewServeMux()
	server := httptest.NewTLSServer(mux)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	var webhooks []any
	for name, hook := range injectors {
		mux.Handle("/"+name, hook)
		again := "Never"
		if strings.HasSuffix(name, "-again") { // after the policies
			again = "IfNeeded"
		}
		webhooks = append(webhooks, podsWebhook(name+".inject.test", server.URL+"/"+name, ca, "inject", name, again))
	}
	objects := []object{webhookConfiguration("injectors", webhooks)}
	mux.Handle("/mutate/", http.StripPrefix("/mutate", http.HandlerFunc(serveMutate)))
	for _, way := range []string{"early.test", "late.test"} { // the API server calls them in the order of their names
		webhooks = nil
		for _, c := range all {
			key, value, _ := strings.Cut(labelled(way, c)[0], "=")
			webhooks = append(webhooks, podsWebhook(string(c)+"."+way, server.URL+"/mutate/"+string(c), ca, key, value, "IfNeeded"))
		}
		objects = append(objects, webhookConfiguration(way, webhooks))
	}
	for _, name := range []string{"remove-init", "native-sidecar", "restrict-sidecar"} {
		more, err := readManifest("../../deploy/admission/v1beta1/" + name + ".yaml")
		if err != nil {
			return err
		}
		objects = append(objects, more...)
	}
	objects = append(objects, neverAgain(objects)...)
	for _, o := range objects {
		if _, err := kubernetes.admin.apply(o); err != nil {
			return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

func webhookConfiguration(name string, webhooks []any) object {
	return object{Object: map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1",
		"kind":       "MutatingWebhookConfiguration",
		"metadata":   map[string]any{"name": name},
		"webhooks":   webhooks,
	}}
}

// podsWebhook is one for the pods in namespaces with a label.
func podsWebhook(name, url string, ca []byte, key, value, reinvocation string) any {
	return map[string]any{
		"name":                    name,
		"admissionReviewVersions": []any{"v1"},
		"sideEffects":             "None",
		"failurePolicy":           "Fail",
		"reinvocationPolicy":      reinvocation,
		"clientConfig":            map[string]any{"url": url, "caBundle": ca},
		"namespaceSelector":       map[string]any{"matchLabels": map[string]any{key: value}},
		"rules": []any{map[string]any{
			"apiGroups": []any{""}, "apiVersions": []any{"v1"}, "resources": []any{"pods"}, "operations": []any{"CREATE"},
		}},
	}
}

// mutators are the decision.Options of each namespace.
var mutators sync.Map

// serveMutate answers as the webhook does, with the net conf of the namespace.
func serveMutate(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var review admissionv1.AdmissionReview
	if err == nil {
		err = json.Unmarshal(body, &review)
	}
	if err != nil || review.Request == nil {
		http.Error(w, fmt.Sprint("no review: ", err), http.StatusBadRequest)
		return
	}
	options, ok := mutators.Load(review.Request.Namespace)
	if !ok {
		http.Error(w, "the test has no net conf for "+review.Request.Namespace, http.StatusInternalServerError)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	webhook.NewReviews(webhook.Judge{
		Options:  options.(decision.Options),
		Sidecars: func() (bool, string) { return true, "" },
	}, webhook.Observer{
		Done:    func(string, string, time.Duration) {},
		Refused: func(string, *admissionv1.AdmissionRequest, string) {},
	}).ServeHTTP(w, r)
}

// neverAgain returns the policy that removes the init container, and its binding, as they would be without the
// reinvocation, for namespaces with a label of their own.
func neverAgain(objects []object) []object {
	var out []object
	for _, o := range objects {
		if o.GetName() != "detour-remove-init" {
			continue
		}
		c := *o.DeepCopy()
		c.SetName("never-again")
		spec := c.Object["spec"].(map[string]any)
		if c.GetKind() == "MutatingAdmissionPolicy" {
			spec["reinvocationPolicy"] = "Never"
		} else {
			spec["policyName"] = "never-again"
			spec["matchResources"] = map[string]any{"namespaceSelector": map[string]any{"matchLabels": map[string]any{"never-again": "enabled"}}}
		}
		out = append(out, c)
	}
	return out
}
