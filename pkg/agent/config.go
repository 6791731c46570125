package agent

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netconf"
)

// Defaults of Config.
const (
	DefaultSocket      = "agent.sock" // in StateDir
	DefaultMetricsAddr = ":15014"
	DefaultNetnsDir    = "/run/netns"
)

// Config is what an agent is made of. Node and Dialect are required, the rest has defaults.
type Config struct {
	// Node is this node's name at the API server.
	Node string
	// Options are the net conf's. No pod of an excluded namespace counts as unprogrammed.
	decision.Options
	// Kubeconfig is a path; "" means the pod's ServiceAccount.
	Kubeconfig string
	// StateDir is the plugin's. It is made 0700.
	StateDir string
	// Socket is the path of the socket, which must be in StateDir.
	Socket string
	// MetricsAddr is where metrics and health are served, NetnsDir where the runtime keeps the pods' network namespaces.
	MetricsAddr string
	NetnsDir    string
	// Repair says what to do with meshed pods that run without redirection.
	Repair repair.Mode
	// MarkNode sets pod.ReadyLabel on the node once it is ready, and removes Taint. That needs the right to get and patch nodes.
	MarkNode bool
	// Installed reports whether the runtime would call the plugin, and if not, what is missing. It must be quick: readiness
	// calls it. nil means true.
	Installed func() (ok bool, missing string)
	// ConfigVersion is called whenever the agent has found another served version of the mesh's configuration, for the net
	// conf's proxy.meshConfig.versions. It must not block.
	ConfigVersion func(version string)
	// TokenExpiry is when the token on the host expires, for a metric. The zero time, and nil, mean that there is none.
	TokenExpiry func() time.Time
	Log         *slog.Logger
}

// withDefaults fills in what is empty.
func (c Config) withDefaults() Config {
	for _, f := range []struct {
		target *string
		value  string
	}{{&c.StateDir, netconf.DefaultStateDir}, {&c.MetricsAddr, DefaultMetricsAddr}, {&c.NetnsDir, DefaultNetnsDir}} {
		if *f.target == "" {
			*f.target = f.value
		}
	}
	c.StateDir = filepath.Clean(c.StateDir)
	if c.Socket == "" {
		c.Socket = filepath.Join(c.StateDir, DefaultSocket)
	}
	if c.ExcludeNamespaces == nil {
		c.ExcludeNamespaces = decision.DefaultExclusions(c.Dialect)
	}
	if c.Repair == "" {
		c.Repair = repair.Report
	}
	if c.Installed == nil {
		c.Installed = func() (bool, string) { return true, "" }
	}
	if c.TokenExpiry == nil {
		c.TokenExpiry = func() time.Time { return time.Time{} }
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

func (c Config) check() error {
	var wrong []string
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if !mesh.IsName(c.Node) {
		bad("%q is not a node's name", c.Node)
	}
	if c.Dialect.Name == "" {
		bad("there is no mesh")
	}
	if filepath.Dir(filepath.Clean(c.Socket)) != c.StateDir {
		bad("the socket %s is not in the state folder %s", c.Socket, c.StateDir)
	}
	if _, err := repair.ParseMode(string(c.Repair)); err != nil {
		bad("%v", err)
	}
	if wrong != nil {
		return fmt.Errorf("configure the agent: %s", strings.Join(wrong, "; "))
	}
	return nil
}
