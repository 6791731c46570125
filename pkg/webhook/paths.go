package webhook

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/detour-cni/detour/pkg/admission"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// path is one of the webhook's paths. The webhook configurations choose it by the namespace's label.
type path struct {
	kinds []string // that it takes; nil if it looks itself
	judge func(*admissionv1.AdmissionRequest) (answer, error)
}

// answer denies what the path can't judge.
func (p path) answer(r *admissionv1.AdmissionRequest) answer {
	if p.kinds != nil && !slices.Contains(p.kinds, r.Kind.Kind) {
		return denied("detour's webhook was sent a %.64q: its webhook configuration has other rules than its manifests", r.Kind.Kind)
	}
	a, err := p.judge(r)
	if err != nil {
		return denied("%s %s/%s: %v", r.Kind.Kind, r.Namespace, nameOf(r), err)
	}
	return a
}

func denied(format string, args ...any) answer {
	return answer{Verdict: admission.Verdict{Denial: fmt.Sprintf(format, args...)}}
}

var pods = []string{"Pod"}

// paths are what it answers: the changes and the checks.
func (j Judge) paths() map[string]path {
	return map[string]path{
		"/remove-init":      {pods, j.change(admission.RemoveInit)},
		"/native-sidecar":   {pods, j.native},
		"/restrict-sidecar": {pods, j.change(admission.RestrictSidecar)},
		"/check/warn":       {pods, j.warn},
		"/check/enforce":    {pods, j.check},
		"/check/template":   {nil, j.checkTemplate},
		"/check/config":     {nil, j.checkConfig},
	}
}

// Judge answers requests.
type Judge struct {
	// Options are the net conf's.
	decision.Options
	// Addresses are the webhook's own, by which it knows the families of all pods. Without them a warning that depends on the families says so.
	Addresses []netip.Addr
	// ConfigOf returns what is known of a mesh's configuration: neither if it is unknown.
	ConfigOf func(mesh.ConfigRef) (config []byte, absent string)
	// Sidecars says whether the cluster has native sidecars, or why not, as half a sentence.
	Sidecars func() (native bool, why string)
}

func (j Judge) change(c admission.Change) func(*admissionv1.AdmissionRequest) (answer, error) {
	return func(r *admissionv1.AdmissionRequest) (answer, error) {
		ops, warnings, err := admission.Mutate(j.Options, c, r.Namespace, r.Object.Raw)
		return answer{admission.Verdict{Warnings: warnings}, ops}, err
	}
}

// native makes the sidecar a native one where the cluster has them. Elsewhere the API server would drop restartPolicy, and the pod would
// wait for the end of its proxy.
func (j Judge) native(r *admissionv1.AdmissionRequest) (answer, error) {
	native, why := j.Sidecars()
	if native {
		return j.change(admission.NativeSidecar)(r)
	}
	a, err := j.change(admission.RemoveInit)(r)
	if len(a.patch) > 0 {
		a.Warnings = append(a.Warnings, fmt.Sprintf("pod %s/%s: its sidecar is no native one, as %s: only the mesh's init container was removed", r.Namespace, nameOf(r), why))
	}
	return a, err
}

func (j Judge) check(r *admissionv1.AdmissionRequest) (answer, error) {
	return answer{Verdict: admission.CheckPod(j.Options, j.input(r, r.Object.Raw))}, nil
}

// warn is check, but denies nothing.
func (j Judge) warn(r *admissionv1.AdmissionRequest) (answer, error) {
	a, err := j.check(r)
	if a.Denial != "" {
		a.Warnings = append([]string{"it will not start: " + a.Denial}, a.Warnings...)
		a.Denial = ""
	}
	return a, err
}

func (j Judge) checkTemplate(r *admissionv1.AdmissionRequest) (answer, error) {
	pod, err := admission.PodOf(r.Object.Raw)
	switch {
	case err != nil:
		return answer{Verdict: admission.Verdict{Warnings: []string{err.Error()}}}, nil //nolint:nilerr // no template is refused
	case pod == nil:
		return answer{}, nil
	}
	v := admission.CheckTemplate(j.Options, j.input(r, pod))
	return answer{Verdict: v}, nil
}

func (j Judge) checkConfig(r *admissionv1.AdmissionRequest) (answer, error) {
	return answer{Verdict: admission.CheckConfig(j.Dialect, r.OldObject.Raw, r.Object.Raw)}, nil
}

// input is what is known of a pod when it is created: no UID, and no address of its own.
func (j Judge) input(r *admissionv1.AdmissionRequest, object []byte) decision.Input {
	var p struct {
		Metadata struct{ Annotations, Labels map[string]string }
	}
	json.Unmarshal(object, &p) //nolint:errcheck // the check says so
	config, absent := j.ConfigOf(j.Dialect.ConfigFor(p.Metadata.Annotations, p.Metadata.Labels))
	return decision.Input{ID: pod.ID{Namespace: r.Namespace, Name: nameOf(r)}, Pod: object, Config: config, ConfigAbsent: absent, Addresses: j.Addresses}
}
