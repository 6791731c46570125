package verify

import (
	"fmt"
	"slices"

	"github.com/detour-cni/detour/pkg/backend"
)

// Result is a pod's, or that of a whole run.
type Result string

// The results.
const (
	Fine    Result = "fine"
	Skipped Result = "skipped" // detour left the pod alone, and that is right
	Unknown Result = "unknown" // nothing wrong was found, but not everything could be checked
	Wrong   Result = "wrong"
)

// Report is what a run found out.
type Report struct {
	// Result is the worst of the pods'; it is never Skipped.
	Result Result `json:"result"`
	Pods   []Pod  `json:"pods"`
	// Node is what is wrong with no pod in particular.
	Node []Finding `json:"node,omitempty"`
}

// Pod is what was found out about one pod.
type Pod struct {
	Pod    string `json:"pod"` // NAMESPACE/NAME
	UID    string `json:"uid,omitempty"`
	Netns  string `json:"netns,omitempty"`
	Result Result `json:"result"`
	// Reason says why the pod is skipped.
	Reason string `json:"reason,omitempty"`
	Mesh   string `json:"mesh,omitempty"`
	// Backend and Rules say with what it was programmed, and with how many rules.
	Backend string `json:"backend,omitempty"`
	Rules   int    `json:"rules,omitempty"`
	// Gate says whether outbound redirection has started, if it waits for the proxy.
	Gate     backend.Gate `json:"gate,omitempty"`
	Findings []Finding    `json:"findings"`
	// Unknown are the checks that could not be made, by the name of their finding, and why.
	Unknown []Finding `json:"unknown"`
	// Warnings are those that an ADD would log today.
	Warnings []string `json:"warnings,omitempty"`
}

// Finding is one thing that is wrong, or that could not be checked.
type Finding struct {
	Name Name   `json:"name"`
	Text string `json:"text"`
	Do   string `json:"do"`
}

// Name is what a finding is called in every version.
type Name string

// The names of findings.
const (
	NotCalled    Name = "not-called"      // the mesh wants the pod, but no ADD has seen it
	Unmeshed     Name = "unmeshed"        // ADD could not program it, and onError is allow
	Gone         Name = "pod-gone"        // the pod has a record, but no network namespace
	BadRecord    Name = "bad-record"      // a record can't be read
	NotReady     Name = "sidecar-ready"   // the sidecar is not ready
	NotListening Name = "sidecar-listens" // nothing listens where connections are redirected to
	SidecarUser  Name = "sidecar-user"    // the sidecar's own connections are redirected to it
	RuleMissing  Name = "rule-missing"
	RuleChanged  Name = "rule-changed"
	RuleAdded    Name = "rule-added"
	RuleAhead    Name = "rule-ahead"    // somebody else's rule takes connections first
	NotTracked   Name = "not-tracked"   // somebody else's rule exempts connections from tracking
	Dormant      Name = "table-dormant" // a table is switched off
	RulesDiffer  Name = "rules-differ"  // in another way
	Drifted      Name = "drifted"       // the configuration asks for something else today
	Wanted       Name = "wanted"        // ADD left the pod alone, but the mesh wants it today
	NotWanted    Name = "not-wanted"    // ADD programmed the pod, but the mesh would leave it alone today
	Refused      Name = "refused"       // the mesh would refuse the pod today
	PortTaken    Name = "port-taken"    // the application listens on a port of the proxy's
	ProxyUser    Name = "proxy-user"    // a process of the application bypasses the proxy
	FamilyBypass Name = "family-bypass" // the pod has an address of a family that is not redirected
)

// The names of what can only be unknown.
const (
	RulesUnknown   Name = "rules"
	ConfigUnknown  Name = "configuration" // the pod, or the mesh's configuration
	SocketsUnknown Name = "sockets"
	OwnersUnknown  Name = "containers" // which container a process belongs to
)

func newPod(id, uid string) Pod {
	return Pod{Pod: id, UID: uid, Findings: []Finding{}, Unknown: []Finding{}}
}

func (p *Pod) finding(name Name, do, format string, args ...any) {
	p.Findings = append(p.Findings, Finding{name, fmt.Sprintf(format, args...), do})
}

func (p *Pod) unknown(name Name, do, format string, args ...any) {
	p.Unknown = append(p.Unknown, Finding{name, fmt.Sprintf(format, args...), do})
}

func (p Pod) concluded() Pod {
	switch {
	case len(p.Findings) > 0:
		p.Result = Wrong
	case p.Reason != "":
		p.Result = Skipped
	case len(p.Unknown) > 0:
		p.Result = Unknown
	default:
		p.Result = Fine
	}
	return p
}

func (r Report) concluded() Report {
	has := func(result Result) bool {
		return slices.ContainsFunc(r.Pods, func(p Pod) bool { return p.Result == result })
	}
	switch {
	case has(Wrong), len(r.Node) > 0:
		r.Result = Wrong
	case has(Unknown):
		r.Result = Unknown
	default:
		r.Result = Fine
	}
	if r.Pods == nil {
		r.Pods = []Pod{}
	}
	return r
}
