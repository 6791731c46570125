// Package injector is for tests only: a mutating admission webhook that injects into pods as a mesh's does.
package injector

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"

	"sigs.k8s.io/yaml"
)

// Webhook adds to a pod what a mesh adds, so far as it matters for tests: the init container last, the sidecar last. A pod
// that has been injected into already is left alone.
type Webhook struct {
	// Init and Sidecar are containers, in YAML.
	Init, Sidecar string
	// Native makes the sidecar an init container, the very last.
	Native bool
	// Again makes it add what is missing to a pod that has been injected into, as istio's does.
	Again bool
}

// patch is the JSON patch that injects into a pod, nothing if it is injected already.
func (h Webhook) patch(pod []byte) ([]any, error) {
	var p struct {
		Metadata struct{ Labels, Annotations map[string]string }
		Spec     struct{ InitContainers, Containers, Volumes []any }
	}
	if err := json.Unmarshal(pod, &p); err != nil {
		return nil, err
	}
	if p.Metadata.Labels["osm-proxy-uuid"] != "" && !h.Again {
		return []any{}, nil
	}
	var init, sidecar map[string]any
	if err := yaml.UnmarshalStrict([]byte(h.Init), &init); err != nil {
		return nil, err
	}
	if err := yaml.UnmarshalStrict([]byte(h.Sidecar), &sidecar); err != nil {
		return nil, err
	}
	add := func(list *[]any, named map[string]any) {
		if !slices.ContainsFunc(*list, func(c any) bool { return c.(map[string]any)["name"] == named["name"] }) {
			*list = append(*list, named)
		}
	}
	add(&p.Spec.InitContainers, init)
	if h.Native {
		add(&p.Spec.InitContainers, sidecar)
	} else {
		add(&p.Spec.Containers, sidecar)
	}
	labels := map[string]string{"osm-proxy-uuid": "0000"}
	maps.Copy(labels, p.Metadata.Labels)
	annotations := map[string]string{"sidecar.istio.io/status": "{}"}
	maps.Copy(annotations, p.Metadata.Annotations)
	volume := map[string]any{"name": "envoy-bootstrap-config-volume", "secret": map[string]any{"secretName": "envoy-bootstrap-config-0000"}}
	add(&p.Spec.Volumes, volume)
	set := func(path string, value any) any { return map[string]any{"op": "add", "path": path, "value": value} }
	return []any{
		set("/metadata/labels", labels),
		set("/metadata/annotations", annotations),
		set("/spec/volumes", p.Spec.Volumes),
		set("/spec/initContainers", p.Spec.InitContainers),
		set("/spec/containers", p.Spec.Containers),
	}, nil
}

// ServeHTTP answers an AdmissionReview of a pod.
func (h Webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var review struct {
		Request struct {
			UID    string
			Object json.RawMessage
		}
	}
	err := json.NewDecoder(r.Body).Decode(&review)
	var patch []any
	if err == nil {
		patch, err = h.patch(review.Request.Object)
	}
	var text []byte
	if err == nil {
		text, err = json.Marshal(patch)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{ // the API server has gone, or it tells
		"apiVersion": "admission.k8s.io/v1",
		"kind":       "AdmissionReview",
		"response":   map[string]any{"uid": review.Request.UID, "allowed": true, "patchType": "JSONPatch", "patch": text},
	})
}
