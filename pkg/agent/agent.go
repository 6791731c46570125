// Package agent is the node agent's cluster side, and wires its rooms. It answers the plugin's lookups from a cache of this node's
// pods and the mesh's configuration (cache), or by a live request where the cache can't be trusted, at a Unix socket (socket). It
// counts what the plugin reports, and writes Events about what only a pod's owner can mend (events). It labels a node
// that can serve pods, and finds, and if told so repairs, meshed pods that were started without the plugin (repair). web
// serves its metrics and health. On the host it writes only its socket and, for repair.InPlace, rules and attachment records.
package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/detour-cni/detour/pkg/agent/cache"
	"github.com/detour-cni/detour/pkg/agent/events"
	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/agent/socket"
	"github.com/detour-cni/detour/pkg/agent/web"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
)

// live answers what the cache can't; it is *kube.API.
type live interface {
	Lookup(context.Context, kube.Request) (kube.Objects, error)
	Ready(context.Context, mesh.ConfigRef) error
}

// Agent is a node's agent. Its methods are safe for concurrent use.
type Agent struct {
	conf     Config
	log      *slog.Logger
	timing   timing
	client   *cache.Client
	cache    *cache.Cache
	live     live
	lives    chan struct{} // a slot for each lookup at the API server
	probe    probe
	socket   *socket.Server
	events   *events.Recorder
	metrics  *metrics
	repairer *repair.Repairer
}

// timing is how long the agent waits for what; tests are less patient.
type timing struct {
	request time.Duration // for a peer at the socket to send a request and to take the answer
	lookup  time.Duration // for a live lookup
	silence time.Duration // of the API server until it is asked about what the cache has
	old     time.Duration // for that question, before the cache answers after all
	ready   time.Duration // for the API server, if readiness depends on it
	probe   time.Duration // between looks whether the API server can be asked
	config  time.Duration // between looks for a configuration that is not served
	node    time.Duration // between looks at the Node
	check   time.Duration // between looks at the socket, and at a node that is not ready
	repair  repair.Timing
}

var patient = timing{
	request: 5 * time.Second,
	lookup:  10 * time.Second,
	silence: cache.Silence + 15*time.Second, // in which it is listed anew
	old:     2 * time.Second,
	ready:   time.Second,
	probe:   5 * time.Second,
	config:  5 * time.Second,
	node:    5 * time.Minute,
	check:   2 * time.Second,
	repair:  repair.Timing{Sweep: 30 * time.Second, Check: 2 * time.Second, Settle: 30 * time.Second, Evict: time.Second},
}

// New makes an agent. It reads the credentials and makes no request.
func New(conf Config) (*Agent, error) { return newAgent(conf, patient) }

func newAgent(conf Config, t timing) (*Agent, error) {
	conf = conf.withDefaults()
	if err := conf.check(); err != nil {
		return nil, err
	}
	config, err := cache.RESTConfig(conf.Kubeconfig)
	if err != nil {
		return nil, err
	}
	a := &Agent{conf: conf, log: conf.Log, timing: t, lives: make(chan struct{}, maxLive)}
	if a.live, err = cache.NewLive(config, cmp.Or(conf.Kubeconfig, "the ServiceAccount")); err != nil {
		return nil, err
	}
	if a.client, err = cache.NewClient(config, conf.Dialect.Config); err != nil {
		return nil, err
	}
	a.cache = cache.New(a.client, cache.Options{
		Node: conf.Node, Dialect: conf.Dialect, ConfigVersion: conf.ConfigVersion, Recheck: t.config, Log: conf.Log,
	})
	a.metrics = newMetrics(observed{
		ready: func() bool { return len(a.Missing(context.Background())) == 0 }, age: a.cache.Age, tokenExpiry: conf.TokenExpiry,
	})
	a.events = events.NewRecorder(a.client, conf.Node, conf.Log, a.metrics.events)
	a.socket = &socket.Server{
		Path: conf.Socket, Answer: a.answer, Malformed: a.metrics.malformed.Inc, Patience: t.request, Check: t.check, Log: conf.Log,
	}
	a.repairer = repair.New(repair.Config{
		Mode: conf.Repair, Mesh: conf.Dialect.Name, StateDir: conf.StateDir, NetnsDir: conf.NetnsDir,
		Cluster: cluster{a}, Owners: a.events, Create: a.client.Create,
		Unprogrammed: a.metrics.unprogrammed, Repairs: a.metrics.repairs, Log: conf.Log, Timing: t.repair,
	})
	return a, nil
}

// Run serves until ctx ends or something fails that the agent can't do without, which is the error. Everything it has started
// has ended when it returns. It leaves the host as it is, but for the socket.
func (a *Agent) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer stop(nil)

	l, err := web.Listen(ctx, a.conf.MetricsAddr)
	if err != nil {
		return err
	}
	needed := func(part func() error) {
		parts.Go(func() {
			if err := part(); err != nil {
				stop(err)
			}
		})
	}
	needed(func() error { return web.Serve(ctx, l, a.handler(), a.log) })
	for _, run := range []func(context.Context){a.socket.Run, a.cache.Run, a.events.Run, a.repairer.Run, a.keepMarked} {
		parts.Go(func() { run(ctx) })
	}
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return nil
}

func (a *Agent) handler() http.Handler { return web.Handler(a.metrics.registry, a.readiness) }

// CountInstall counts a write of what is installed on the host: binary, conflist, kubeconfig, token.
func (a *Agent) CountInstall(what string) { a.metrics.installs.WithLabelValues(what).Inc() }

// CountConflict counts that another installer has undone what was installed.
func (a *Agent) CountConflict() { a.metrics.conflicts.Inc() }
