package pod

import (
	"encoding/json"
	"fmt"
)

// Trim reduces a pod's JSON to what Parse reads, so that a cache can keep many. It leaves out annotations and labels for which
// reads is false, and the arguments and variables of all containers but the one called verbose: they can be long. Trim does not
// check what Parse checks.
func Trim(data []byte, verbose string, reads func(name string) bool) ([]byte, error) {
	var w wire
	if err := json.Unmarshal(data, &w); err != nil {
		return nil, fmt.Errorf("decode Pod: %w", err)
	}
	return Trimmed(w.Metadata, w.Spec, w.Status, verbose, reads)
}

// Trimmed is Trim for a caller that has decoded the pod, with more fields of its own. It changes metadata and spec.
func Trimmed(m Metadata, s Spec, status Status, verbose string, reads func(name string) bool) ([]byte, error) {
	w := wire{"Pod", "v1", m, s, status} // the API server leaves kind and version out of a list's items
	for _, names := range []map[string]string{w.Metadata.Annotations, w.Metadata.Labels} {
		for name := range names {
			if !reads(name) && name != MirrorAnnotation {
				delete(names, name)
			}
		}
	}
	for _, list := range [][]wireContainer{w.Spec.InitContainers, w.Spec.Containers} {
		for i := range list {
			if list[i].Name != verbose {
				list[i].Args, list[i].Env = nil, nil
			}
		}
	}
	return json.Marshal(w)
}
