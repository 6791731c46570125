// Package netconf reads detour's network configuration, the net conf: what a runtime passes to the plugin, and what a conflist
// or the agent's configuration contains. Plugin, agent and command line share it.
package netconf

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
)

// Defaults of the net conf.
const (
	DefaultTimeout  = 10 * time.Second
	DefaultStateDir = "/run/detour"
)

// Conf is a valid net conf with its defaults filled in.
type Conf struct {
	decision.Options
	CNIVersion string
	// Name is the network's.
	Name string
	// PrevResult is the result of the plugins ahead, a JSON object, or nil.
	PrevResult json.RawMessage
	// ValidAttachments are those that GC must keep.
	ValidAttachments []types.GCAttachment

	AgentSocket string
	Kubeconfig  string
	Manifests   string
	// Backend is one of backend.Choices.
	Backend      string
	AllowOnError bool
	// Timeout bounds a whole ADD.
	Timeout  time.Duration
	StateDir string
	LogFile  string
	LogLevel slog.Level
}

// Parse reads a net conf. Every error is a CNI error with code 7 that names the fields. Even then Parse returns a Conf with
// everything usable, because DEL has to succeed.
func Parse(stdin []byte) (Conf, error) {
	n := wire{StateDir: DefaultStateDir}
	decodeErr := n.decode(stdin)
	conf, err := n.conf()
	if decodeErr != nil {
		err = describe(decodeErr)
	}
	if err != nil {
		return conf, types.NewError(types.ErrInvalidNetworkConfig, "network configuration of detour: "+err.Error(), "")
	}
	return conf, nil
}

// mistakes collects what is wrong, so that one error can name it all.
type mistakes []string

func (m *mistakes) add(format string, args ...any) { *m = append(*m, fmt.Sprintf(format, args...)) }

func (m mistakes) err() error {
	if m == nil {
		return nil
	}
	return errors.New(strings.Join(m, "; "))
}

func (n wire) conf() (Conf, error) {
	var wrong mistakes
	c := Conf{
		CNIVersion:       n.CNIVersion,
		Name:             n.Name,
		ValidAttachments: n.ValidAttachments,
		AgentSocket:      n.AgentSocket,
		Kubeconfig:       n.Kubeconfig,
		Manifests:        n.Manifests,
		Backend:          cmp.Or(n.Backend, backend.Auto),
		AllowOnError:     n.OnError == "allow",
		StateDir:         cmp.Or(n.StateDir, DefaultStateDir),
		LogFile:          n.LogFile,
	}
	c.Options = n.options(&wrong)
	c.check(n, &wrong)
	if n.Timeout != "" {
		t, err := time.ParseDuration(n.Timeout)
		if err != nil || t <= 0 {
			wrong.add("timeout: %q is not a time such as 10s or 500ms", n.Timeout)
		}
		c.Timeout = max(t, 0)
	}
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	if n.StateDir == "" {
		wrong.add("stateDir: it must not be empty")
	}
	if n.LogLevel != "" && c.LogLevel.UnmarshalText([]byte(n.LogLevel)) != nil {
		wrong.add("logLevel: %q is none of debug, info, warn, error", n.LogLevel)
	}
	if present(n.PrevResult) {
		c.PrevResult = n.PrevResult
	}
	return c, wrong.err()
}

// options are what the net conf says about the decision.
func (n wire) options(wrong *mistakes) decision.Options {
	o := decision.Options{DirectInit: n.DirectInitContainers, Gated: n.RedirectAfterProxyStart}
	var known bool
	if o.Dialect, known = mesh.Find(n.Mesh); !known {
		wrong.add("mesh: %q is none of %s", n.Mesh, strings.Join(mesh.Names(), ", "))
	}
	if known && n.Proxy != nil {
		d, err := o.Dialect.With(*n.Proxy)
		if err != nil {
			wrong.add("%v", err)
		} else {
			o.Dialect = d
		}
	}
	override := func(field, value string, target *string) {
		if value != "" && !mesh.IsName(value) {
			wrong.add("meshConfig.%s: %q is not a Kubernetes name", field, value)
		}
		if value != "" && known && o.Dialect.Config.IsZero() {
			wrong.add("meshConfig.%s: mesh %s has no configuration object", field, n.Mesh)
		}
		*target = cmp.Or(value, *target)
	}
	override("namespace", n.MeshConfig.Namespace, &o.Dialect.Config.Namespace)
	override("name", n.MeshConfig.Name, &o.Dialect.Config.Name)
	o.ExcludeNamespaces = decision.DefaultExclusions(o.Dialect)
	if n.ExcludeNamespaces != nil {
		o.ExcludeNamespaces = *n.ExcludeNamespaces
	}
	return o
}

// check checks the fields that take one of few values, or exclude each other.
func (c Conf) check(n wire, wrong *mistakes) {
	if (n.AgentSocket == "" && n.Kubeconfig == "") == (n.Manifests == "") {
		wrong.add("agentSocket and kubeconfig, one or both, or else manifests are needed")
	}
	if !slices.Contains(backend.Choices, c.Backend) {
		wrong.add("backend: %q is none of %s", c.Backend, strings.Join(backend.Choices, ", "))
	}
	if c.Gated && c.Backend == backend.IPTables {
		wrong.add("redirectAfterProxyStart: it takes nftables, and backend is %s", backend.IPTables)
	}
	if !slices.Contains([]string{"", "fail", "allow"}, n.OnError) {
		wrong.add("onError: %q is none of fail, allow", n.OnError)
	}
}
