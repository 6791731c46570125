// Package agent is the node agent's cluster side. It answers the plugin's lookups from a cache of this node's pods and
// the mesh's configuration, or by a live request where the cache can't be trusted; it counts what the plugin reports,
// tells a pod's owner by Event what only he can mend, takes the taint off a node that can serve pods, and finds, and by
// choice repairs, meshed pods that were started without the plugin. It writes nothing on the host but its socket and,
// for Repair InPlace, attachment records.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netconf"
)

// Defaults of Config.
const (
	DefaultSocket      = "agent.sock" // in StateDir
	DefaultMetricsAddr = ":15014"
	DefaultNetnsDir    = "/run/netns"
)

// Config is what an agent is made of. Node and Dialect are needed, the rest has defaults.
type Config struct {
	// Node is this node's name at the API server.
	Node string
	// Options are those of the net conf. Of an excluded namespace no pod counts as unprogrammed.
	decision.Options
	// Kubeconfig is a path; empty stands for the pod's ServiceAccount.
	Kubeconfig string
	// StateDir is the plugin's. It is made 0700.
	StateDir string
	// Socket is the path of the socket, which must be in StateDir.
	Socket string
	// MetricsAddr is where metrics and health are served, NetnsDir where the runtime keeps the pods' network namespaces.
	MetricsAddr string
	NetnsDir    string
	// Repair says what becomes of meshed pods that run without redirection.
	Repair Repair
	// RemoveTaint takes Taint off the node once it is ready. That needs the right to get and patch nodes.
	RemoveTaint bool
	// Installed reports whether the runtime would call the plugin, and if not, what is missing. It must be quick: readiness
	// calls it. nil stands for true.
	Installed func() (ok bool, missing string)
	// ConfigVersion is called, on a goroutine of the agent's, whenever the served version of the mesh's configuration was
	// found or has changed; that is what the net conf's proxy.meshConfig.versions should have. It must not block.
	ConfigVersion func(version string)
	// Version is the build's, for a metric.
	Version string
	Log     *slog.Logger
}

// withDefaults fills in what is empty.
func (c Config) withDefaults() Config {
	for _, f := range []struct {
		target *string
		value  string
	}{{&c.StateDir, netconf.DefaultStateDir}, {&c.MetricsAddr, DefaultMetricsAddr}, {&c.NetnsDir, DefaultNetnsDir}, {&c.Version, "development"}} {
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
		c.Repair = Report
	}
	if c.Installed == nil {
		c.Installed = func() (bool, string) { return true, "" }
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
	if _, err := ParseRepair(string(c.Repair)); err != nil {
		bad("%v", err)
	}
	if wrong != nil {
		return fmt.Errorf("configure the agent: %s", strings.Join(wrong, "; "))
	}
	return nil
}

// live answers what the cache can't; it is *kube.API.
type live interface {
	Lookup(context.Context, kube.Request) (kube.Objects, error)
	Ready(context.Context, mesh.ConfigRef) error
}

// Agent is a node's agent. Its methods are safe for concurrent use.
type Agent struct {
	conf      Config
	log       *slog.Logger
	client    *client
	live      live
	lives     chan struct{} // a slot for each lookup at the API server
	probe     probe
	pods      *podCache
	config    *configCache // the mesh's usual configuration
	revisions *revisions   // and others that pods have
	metrics   *metrics
	events    *recorder
	store     attachment.Store
	socket    socketState
	timing    timing
	booted    time.Time       // when the node was
	told      map[string]bool // UIDs that the last sweep found; its goroutine's
}

// timing is how long the agent waits for what; tests are less patient.
type timing struct {
	request time.Duration // for a peer to send its request and to take the answer
	lookup  time.Duration // for a live lookup
	ready   time.Duration // for the API server, if readiness depends on it
	probe   time.Duration // between looks whether the API server can be asked
	sweep   time.Duration // between searches for unprogrammed pods
	settle  time.Duration // a pod must have run that long to be called unprogrammed
	taint   time.Duration // between looks at the node's taints
	check   time.Duration // between looks at the own socket
	evict   time.Duration // between evictions
}

var patient = timing{
	request: 5 * time.Second,
	lookup:  10 * time.Second,
	ready:   time.Second,
	probe:   5 * time.Second,
	sweep:   30 * time.Second,
	settle:  30 * time.Second,
	taint:   5 * time.Minute,
	check:   2 * time.Second,
	evict:   time.Second,
}

// New makes an agent; it reads the credentials and asks nobody.
func New(conf Config) (*Agent, error) {
	conf = conf.withDefaults()
	if err := conf.check(); err != nil {
		return nil, err
	}
	config, err := restConfig(conf.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read the API server's address and credential: %w", err)
	}
	api, err := newLive(config, cmp.Or(conf.Kubeconfig, "the ServiceAccount"))
	if err != nil {
		return nil, err
	}
	return newAgent(conf, config, api, patient)
}

// newLive prepares what asks the API server for what the cache does not have; origin is what errors call the configuration.
func newLive(config *rest.Config, origin string) (*kube.API, error) {
	server, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("read the server's address in %s: %w", origin, err)
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("prepare a client from %s: %w", origin, err)
	}
	return kube.NewAPIOver(transport, server, origin), nil
}

func newAgent(conf Config, config *rest.Config, api live, t timing) (*Agent, error) {
	c, err := newClient(config, conf.Dialect.Config)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		conf:   conf,
		log:    conf.Log,
		client: c,
		live:   api,
		lives:  make(chan struct{}, mostLive),
		pods:   newPodCache(conf.Dialect, conf.Log),
		config: newConfigCache(conf.Dialect.Config, conf.Log, conf.ConfigVersion),
		store:  attachment.NewStore(conf.StateDir),
		timing: t,
		booted: bootTime(),
	}
	a.revisions = &revisions{usual: conf.Dialect.Config, log: conf.Log, caches: map[string]*configCache{}}
	a.metrics = newMetrics(conf.Version, a.pods.age)
	a.events = newRecorder(c, conf.Node, conf.Log, a.metrics.events)
	return a, nil
}

// Run serves until ctx ends or something fails that the agent can't do without, which is the error. Everything that it
// has started has ended when it returns. It leaves the host as it is, but for the socket.
func (a *Agent) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer stop(nil)

	http, err := listenTCP(ctx, a.conf.MetricsAddr)
	if err != nil {
		return fmt.Errorf("serve metrics and health: %w", err)
	}
	start := func(part func(context.Context) error) {
		parts.Go(func() {
			if err := part(ctx); err != nil {
				stop(err)
			}
		})
	}
	always := func(part func(context.Context)) {
		start(func(ctx context.Context) error { part(ctx); return nil })
	}
	start(func(ctx context.Context) error { return a.serveHTTP(ctx, http) })
	start(a.keepSocket)
	always(func(ctx context.Context) { a.pods.run(ctx, a.client, a.conf.Node) })
	always(func(ctx context.Context) { a.config.run(ctx, a.client) })
	always(a.keepRevisions)
	always(a.events.run)
	always(a.sweepAlways)
	if a.conf.RemoveTaint {
		always(a.keepTaintOff)
	}
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return nil
}

// CountInstall counts a write of what is installed on the host: binary, conflist, kubeconfig, token.
func (a *Agent) CountInstall(what string) { a.metrics.installs.WithLabelValues(what).Inc() }

// CountConflict counts that another installer has undone what was installed.
func (a *Agent) CountConflict() { a.metrics.conflicts.Inc() }
