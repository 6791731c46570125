package admission

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
)

// CheckPod says what ADD would say of a pod as it came out of injection. in.ID is what the request calls it; its UID does not count. If
// in.Addresses is empty, a pod is denied only if ADD would refuse it with any addresses; otherwise those are of the families that the
// cluster's pods get. in.Config is unknown if it and in.ConfigAbsent are empty: then a pod is denied only for what it says itself.
func CheckPod(o decision.Options, in decision.Input) Verdict {
	if inHostNetwork(in.Pod) {
		return Verdict{}
	}
	in.ID.UID = ""
	all := outcomesOf(o.Decide, in)
	denial, said := judge(all)
	if denial == "" && all[0].Skip == "" && configUnknown(o.Dialect, in) {
		return Verdict{Warnings: []string{fmt.Sprintf("pod %s: the configuration of its mesh is not known now: only what the pod itself says was checked", in.ID)}}
	}
	v := Verdict{Denial: denial}
	for _, s := range said {
		if len(s.networks) < len(all) {
			s.text = fmt.Sprintf("if the pod gets %s: %s", strings.Join(s.networks, " or "), s.text)
		}
		v.Warnings = append(v.Warnings, s.text)
	}
	v.Warnings = atMost(v.Warnings)
	return v
}

// inHostNetwork reports whether the pod is in its node's network: no runtime calls ADD for it.
func inHostNetwork(data []byte) bool {
	var p struct{ Spec struct{ HostNetwork bool } }
	return json.Unmarshal(data, &p) == nil && p.Spec.HostNetwork
}

func configUnknown(d mesh.Dialect, in decision.Input) bool {
	return !d.Config.IsZero() && in.Config == nil && in.ConfigAbsent == ""
}

// networks are what a pod may get, with addresses that stand for all others (RFC 5737, RFC 3849).
var networks = []struct {
	what      string
	addresses []netip.Addr
}{
	{"an IPv4 address only", []netip.Addr{anyIPv4}},
	{"an IPv6 address only", []netip.Addr{anyIPv6}},
	{"addresses of both families", []netip.Addr{anyIPv4, anyIPv6}},
}

var anyIPv4, anyIPv6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")

// outcome is what is decided for a pod in one network.
type outcome struct {
	network string
	decision.Decision
	err error
}

func outcomesOf(decide func(decision.Input) (decision.Decision, error), in decision.Input) []outcome {
	if len(in.Addresses) > 0 {
		d, err := decide(in)
		return []outcome{{"", d, err}}
	}
	var all []outcome
	for _, n := range networks {
		in.Addresses = n.addresses
		d, err := decide(in)
		all = append(all, outcome{n.what, d, err})
	}
	return all
}

// said is a warning, once, and the networks in which it is given.
type said struct {
	text     string
	networks []string
}

// judge denies what is refused in all networks, and warns of the rest.
func judge(all []outcome) (denial string, warnings []said) {
	if !slices.ContainsFunc(all, func(o outcome) bool { return o.err == nil }) {
		return all[0].err.Error(), nil
	}
	at := map[string]int{}
	for _, o := range all {
		texts := o.Warnings
		if o.err != nil {
			texts = []string{"it would not start: " + o.err.Error()}
		}
		for _, text := range texts {
			i, ok := at[text]
			if !ok {
				i, at[text] = len(warnings), len(warnings)
				warnings = append(warnings, said{text: text})
			}
			if w := &warnings[i]; !slices.Contains(w.networks, o.network) {
				w.networks = append(w.networks, o.network)
			}
		}
	}
	return "", warnings
}

// maxWarnings is how many warnings a verdict has. The API server cuts all of them short when they are longer than 4,096 runes together.
const maxWarnings = 10

func atMost(warnings []string) []string {
	if more := len(warnings) - maxWarnings; more > 0 {
		return append(warnings[:maxWarnings:maxWarnings], fmt.Sprintf("%d more warnings: the plugin's log has them when the pod starts", more))
	}
	return warnings
}
