package doctor

import (
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// Result is a check's, or that of a whole run.
type Result string

// The results, from the best to the worst.
const (
	Fine    Result = "fine"
	Limited Result = "limited" // only pods that ask for something particular fail, or detour takes another way
	Unknown Result = "unknown" // it could not be found out
	Wrong   Result = "wrong"   // ADD fails, or the runtime does not call detour
)

var order = []Result{Fine, Limited, Unknown, Wrong}

// Report is what a run found out. Its names stay the same in every version.
type Report struct {
	Result  Result   `json:"result"` // the worst of all
	Kernel  string   `json:"kernel"`
	Runtime *Runtime `json:"runtime,omitempty"`
	// Trials say with what ADD would program pods, and what would fail.
	Trials []Trial `json:"trials"`
	// Features are what detour's rules need of the kernel and of iptables.
	Features []Feature `json:"features"`
	// Checks are about everything else.
	Checks []Check `json:"checks"`
}

// Trial is the programming of a mesh's rules, as ADD does it for a pod without annotations.
type Trial struct {
	Network string `json:"network,omitempty"` // the net conf's, if the node has one
	Mesh    string `json:"mesh"`
	// Families are those that are programmed.
	Families []rules.Family `json:"families"`
	Result   Result         `json:"result"`
	Backend  string         `json:"backend,omitempty"` // that ADD ends up with
	// Reason says why ADD fails, or why it takes another backend than the preferred one.
	Reason string `json:"reason,omitempty"`
	Do     string `json:"do,omitempty"`

	hung bool // a program did not end
}

// Feature is something that rules need, with one variant of a backend and in one family.
type Feature struct {
	Name    Kind         `json:"name"`
	Backend string       `json:"backend"`
	Family  rules.Family `json:"family"`
	Present bool         `json:"present"`
	// Result is Wrong or Limited only for a backend that ADD would need: another backend may do instead.
	Result Result `json:"result"`
	For    string `json:"for"`   // which mesh or option
	Needs  string `json:"needs"` // of the kernel: modules and options
	Since  string `json:"since"` // the first kernel that has it
	// Error is what programming it failed with, Errno the kernel's error if that is known.
	Error string `json:"error,omitempty"`
	Errno string `json:"errno,omitempty"`
	Do    string `json:"do,omitempty"`
}

// Check is one thing that was looked at.
type Check struct {
	Name   Name   `json:"name"`
	Result Result `json:"result"`
	Found  string `json:"found"`
	Do     string `json:"do,omitempty"`
}

// Name is what a check is called in every version.
type Name string

// The names of checks.
const (
	CheckNamespace  Name = "namespace"   // a network namespace can be made
	CheckRuntime    Name = "runtime"     // the process that will start the plugin: its PATH, its rights, its files
	CheckIPTables   Name = "iptables"    // the programs of iptables
	CheckIPv6       Name = "ipv6"        // pods can have IPv6 addresses
	CheckConntrack  Name = "conntrack"   // there is room for connections
	CheckStateDir   Name = "state-dir"   // records can be written
	CheckPlugin     Name = "plugin"      // the runtime can start the plugin
	CheckConfDir    Name = "conf-dir"    // the node agent can change the runtime's list of plugins
	CheckBinDir     Name = "bin-dir"     // the node agent can install the plugin
	CheckList       Name = "plugin-list" // the list that the runtime loads calls detour
	CheckNetConf    Name = "net-conf"    // detour's entry is valid
	CheckKubeconfig Name = "kubeconfig"  // the plugin can read its credentials
	CheckToken      Name = "token"       // the token is valid now
	CheckAgent      Name = "agent"       // the agent answers
	CheckAPIServer  Name = "api-server"  // the API server answers the plugin
)

// concluded fills in the result.
func (r Report) concluded() Report {
	var all []Result
	for _, t := range r.Trials {
		all = append(all, t.Result)
	}
	for _, f := range r.Features {
		all = append(all, f.Result)
	}
	for _, c := range r.Checks {
		all = append(all, c.Result)
	}
	r.Result = worst(all)
	return r
}

func worst(all []Result) Result {
	out := Fine
	for _, r := range all {
		if slices.Index(order, r) > slices.Index(order, out) {
			out = r
		}
	}
	return out
}
