package admission

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/redirect"
)

// configured is what the check reads of any configuration object.
type configured struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"metadata"`
}

// CheckConfig denies a change of the mesh's configuration that ADD could not read, and warns of one that gives new pods other rules than
// the running pods have. old is empty if the object is new, new if it is deleted. An object that is not the mesh's configuration
// passes, and so does one that was as unreadable before.
func CheckConfig(d mesh.Dialect, old, new []byte) Verdict {
	var object configured
	if json.Unmarshal(either(new, old), &object) != nil {
		return Verdict{}
	}
	ref, ok := d.ConfigNamed(object.Metadata.Namespace, object.Metadata.Name)
	if !ok {
		return Verdict{}
	}
	if !served(ref, object) {
		return Verdict{Warnings: []string{fmt.Sprintf("%s: it is a %.64q of %.64q, which detour does not read: it reads a %s of %s",
			ref, object.Kind, object.APIVersion, ref.Kind, strings.Join(versions(ref), " or "))}}
	}
	before, wrongBefore := readConfig(d, ref, old)
	after, wrong := readConfig(d, ref, new)
	switch {
	case wrong != "" && wrong == wrongBefore:
		return Verdict{Warnings: []string{wrong}}
	case wrong != "":
		return Verdict{Denial: wrong}
	}
	var warnings []string
	if fields := changed(before.Policy, after.Policy); wrongBefore == "" && len(fields) > 0 {
		warnings = append(warnings, fmt.Sprintf("%s: %s: running pods keep their rules until they are restarted (kubectl rollout restart); `kubectl detour verify` shows which",
			ref, strings.Join(fields, ", ")))
	}
	for _, w := range after.Warnings {
		if !slices.Contains(before.Warnings, w) {
			warnings = append(warnings, w)
		}
	}
	return Verdict{Warnings: warnings}
}

func either(a, b []byte) []byte {
	if len(a) > 0 {
		return a
	}
	return b
}

func served(ref mesh.ConfigRef, o configured) bool {
	return o.Kind == ref.Kind && slices.Contains(versions(ref), o.APIVersion)
}

// versions are the values of apiVersion that the configuration may have.
func versions(ref mesh.ConfigRef) []string {
	var out []string
	for _, v := range ref.Versions {
		out = append(out, strings.TrimPrefix(ref.Group+"/"+v, "/"))
	}
	return out
}

// readConfig decides about a pod that asks for nothing itself. wrong is why ADD could not read the configuration, or not obey it.
func readConfig(d mesh.Dialect, ref mesh.ConfigRef, config []byte) (out mesh.Decision, wrong string) {
	p := d.Bare(ref)
	out, err := d.Decide(mesh.Input{Pod: p, Config: either(config, nil), Addresses: []netip.Addr{anyIPv4}})
	if err == nil {
		return out, ""
	}
	if about, ok := strings.CutPrefix(err.Error(), "pod "+p.String()+": "); ok { // each pod's refusal, but the configuration's fault
		return out, ref.String() + ": " + about
	}
	return out, err.Error()
}

// fields are those of configurations that redirect.AskedOf calls by what they set.
var fields = map[string]string{
	"address by which the proxy reaches the application": "spec.sidecar.localProxyMode",
	"redirection of DNS queries":                         "spec.sidecar.localDNSProxy",
	"inbound listener":                                   "data.mesh.proxyInboundListenPort",
	"outbound listener":                                  "data.mesh.proxyListenPort",
}

// changed names the fields by which two policies differ. The order of a list's entries makes no difference.
func changed(a, b redirect.Policy) []string {
	one, other := askedBy(a), askedBy(b)
	names := map[string]bool{}
	for _, pair := range [][2]map[entry]string{{one, other}, {other, one}} {
		for e, field := range pair[0] {
			if _, both := pair[1][e]; !both {
				names[field] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// entry is one value of one kind that a configuration asks for.
type entry struct{ what, value string }

// askedBy returns what a policy is made of, and which field asks for it.
func askedBy(p redirect.Policy) map[entry]string {
	out := map[entry]string{}
	for _, a := range redirect.AskedOf(p) {
		for _, value := range a.Values {
			out[entry{a.What, value}] = cmp.Or(a.Where, fields[a.What], a.What)
		}
	}
	return out
}
