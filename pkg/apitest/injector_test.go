//go:build kubeapi

package apitest

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"

	"sigs.k8s.io/yaml"
)

// The injectors of the test's webhook server, by the value of the namespace label "inject". Each adds what its mesh adds to a
// pod, so far as it matters here: the init container last, the sidecar last.
var injectors = map[string]injector{
	"osm": {init: "{name: osm-init, image: init, " + osmInitContext + "}", sidecar: osmSidecar},
	// a sidecar that the Pod Security Standard restricted has nothing against
	"osm-strict": {
		init:    "{name: osm-init, image: init, " + osmInitContext + "}",
		sidecar: strings.Replace(osmSidecar, "runAsUser: 1500", "runAsUser: 1500, "+strict, 1),
	},
	// called again after the policies; it adds what is not there
	"osm-again": {init: "{name: osm-init, image: init, " + osmInitContext + "}", sidecar: osmSidecar, reinvocation: "IfNeeded"},
	"fsm": {
		init:    "{name: fsm-init, image: init, " + osmInitContext + "}",
		sidecar: "{name: sidecar, image: pipy, securityContext: {runAsUser: 1500}}",
	},
	"istio": {
		init:    "{name: istio-init, image: proxy, securityContext: {runAsUser: 0, capabilities: {add: [NET_ADMIN, NET_RAW], drop: [ALL]}}}",
		sidecar: "{name: istio-proxy, image: proxy, securityContext: {runAsUser: 1337, " + strict + "}, startupProbe: {httpGet: {path: /healthz/ready, port: 15021}}}",
	},
	// with native sidecars switched on, not at the head
	"istio-native": {
		init:    "{name: istio-init, image: proxy, securityContext: {runAsUser: 0, capabilities: {add: [NET_ADMIN, NET_RAW], drop: [ALL]}}}",
		sidecar: "{name: istio-proxy, image: proxy, restartPolicy: Always, securityContext: {runAsUser: 1337, " + strict + "}}",
		native:  true,
	},
}

const (
	osmInitContext = "securityContext: {privileged: false, runAsUser: 0, runAsNonRoot: false, capabilities: {add: [NET_ADMIN]}}"
	strict         = "runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}"
	// Of every kind of field that an init container otherwise can't have, and of those that are easily lost.
	osmSidecar = `
name: envoy
image: envoy
imagePullPolicy: IfNotPresent
command: [envoy]
args: [--log-level, error]
securityContext: {runAsUser: 1500}
ports: [{name: proxy-admin, containerPort: 15000}, {name: proxy-inbound, containerPort: 15003}]
volumeMounts: [{name: envoy-bootstrap-config-volume, readOnly: true, mountPath: /etc/envoy}]
env:
  - {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
  - {name: LIMIT, valueFrom: {resourceFieldRef: {containerName: envoy, resource: limits.memory}}}
resources: {requests: {cpu: 10m}, limits: {memory: 64Mi}}
readinessProbe: {httpGet: {path: /ready, port: 15000}, periodSeconds: 3}
livenessProbe: {tcpSocket: {port: 15000}}
startupProbe: {exec: {command: [ready]}, failureThreshold: 30}
lifecycle: {postStart: {exec: {command: [wait]}}, preStop: {sleep: {seconds: 1}}}
terminationMessagePolicy: FallbackToLogsOnError
`
)

type injector struct {
	init, sidecar string
	native        bool
	reinvocation  string
}

// patch is the JSON patch that injects into a pod, nothing if it is injected already.
func (i injector) patch(pod []byte) ([]any, error) {
	var p struct {
		Metadata struct{ Labels map[string]string }
		Spec     struct{ InitContainers, Containers, Volumes []any }
	}
	if err := json.Unmarshal(pod, &p); err != nil {
		return nil, err
	}
	if p.Metadata.Labels["osm-proxy-uuid"] != "" {
		return []any{}, nil
	}
	var init, sidecar map[string]any
	if err := yaml.UnmarshalStrict([]byte(i.init), &init); err != nil {
		return nil, err
	}
	if err := yaml.UnmarshalStrict([]byte(i.sidecar), &sidecar); err != nil {
		return nil, err
	}
	p.Spec.InitContainers = append(p.Spec.InitContainers, init)
	if i.native {
		p.Spec.InitContainers = append(p.Spec.InitContainers, sidecar)
	} else {
		p.Spec.Containers = append(p.Spec.Containers, sidecar)
	}
	labels := map[string]string{"osm-proxy-uuid": "0000"}
	maps.Copy(labels, p.Metadata.Labels)
	volume := map[string]any{"name": "envoy-bootstrap-config-volume", "secret": map[string]any{"secretName": "envoy-bootstrap-config-0000"}}
	add := func(path string, value any) any { return map[string]any{"op": "add", "path": path, "value": value} }
	return []any{
		add("/metadata/labels", labels),
		add("/spec/volumes", append(p.Spec.Volumes, volume)),
		add("/spec/initContainers", p.Spec.InitContainers),
		add("/spec/containers", p.Spec.Containers),
	}, nil
}

// ServeHTTP is a mutating admission webhook.
func (i injector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var review struct {
		Request struct {
			UID    string
			Object json.RawMessage
		}
	}
	err := json.NewDecoder(r.Body).Decode(&review)
	var patch []any
	if err == nil {
		patch, err = i.patch(review.Request.Object)
	}
	var text []byte
	if err == nil {
		text, err = json.Marshal(patch)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	json.NewEncoder(w).Encode(map[string]any{ // the API server has gone, or it tells
		"apiVersion": "admission.k8s.io/v1",
		"kind":       "AdmissionReview",
		"response":   map[string]any{"uid": review.Request.UID, "allowed": true, "patchType": "JSONPatch", "patch": text},
	})
}

// serveAdmission installs the webhooks and deploy/'s policies. The server ends with the process.
func serveAdmission() error {
	mux := http.NewServeMux()
	server := httptest.NewTLSServer(mux)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	var webhooks []any
	for name, i := range injectors {
		mux.Handle("/"+name, i)
		hook := map[string]any{
			"name":                    name + ".inject.test",
			"admissionReviewVersions": []any{"v1"},
			"sideEffects":             "None",
			"failurePolicy":           "Fail",
			"clientConfig":            map[string]any{"url": server.URL + "/" + name, "caBundle": ca},
			"namespaceSelector":       map[string]any{"matchLabels": map[string]any{"inject": name}},
			"rules": []any{map[string]any{
				"apiGroups": []any{""}, "apiVersions": []any{"v1"}, "resources": []any{"pods"}, "operations": []any{"CREATE"},
			}},
		}
		if i.reinvocation != "" {
			hook["reinvocationPolicy"] = i.reinvocation
		}
		webhooks = append(webhooks, hook)
	}
	objects := []object{{Object: map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1",
		"kind":       "MutatingWebhookConfiguration",
		"metadata":   map[string]any{"name": "injectors"},
		"webhooks":   webhooks,
	}}}
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
