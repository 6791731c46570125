package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/detour-cni/detour/pkg/mesh"
)

func listenTCP(ctx context.Context, addr string) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
}

// serveHTTP serves metrics and health until ctx ends.
func (a *Agent) serveHTTP(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:        a.handler(),
		ReadTimeout:    5 * time.Second,
		WriteTimeout:   10 * time.Second,
		IdleTimeout:    2 * time.Minute, // longer than between two scrapes
		MaxHeaderBytes: 4 << 10,
		ErrorLog:       slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan struct{})
	defer func() { <-ended }()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		defer close(ended)
		<-ctx.Done()
		patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(patience) != nil {
			server.Close() //nolint:errcheck // it ends either way
		}
	}()
	if err := server.Serve(&fairListener{Listener: l, most: mostConnections}); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics and health: %w", err)
	}
	return nil
}

// freshMetrics is how long metrics are served without a new look, which takes ten times as long as all else about them.
const freshMetrics = time.Second

// remember returns a function that calls get only if its last result is older than so long. It is safe for concurrent use.
func remember[T any](get func() (T, error), long time.Duration) func() (T, error) {
	var mu sync.Mutex
	var last T
	var err error
	var at time.Time
	return func() (T, error) {
		mu.Lock()
		defer mu.Unlock()
		if at.IsZero() || time.Since(at) >= long {
			last, err = get()
			at = time.Now()
		}
		return last, err
	}
}

// handler serves /metrics, /healthz, which answers as long as the process does, and /readyz.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	// A page is some kilobytes; what compresses one has almost a megabyte.
	page := promhttp.HandlerOpts{DisableCompression: true}
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.GathererFunc(remember(a.metrics.registry.Gather, freshMetrics)), page))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		missing := a.Missing(r.Context())
		if len(missing) == 0 {
			fmt.Fprintln(w, "ok"+a.silence())
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, strings.Join(missing, "\n"))
	})
	return mux
}

// aSilence is longer than an API server lets its watches be silent.
const aSilence = 3 * time.Minute

// silence says what is left of readiness while the API server is not heard of.
func (a *Agent) silence() string {
	age := a.pods.age()
	if age < aSilence || !a.pods.isSynced() {
		return ""
	}
	return fmt.Sprintf("; the API server has said nothing for %s: pods that the agent knows start, others wait for it", age.Round(time.Second))
}

// Missing says what keeps this node from serving an ADD, one sentence each; nothing means that it would be served.
func (a *Agent) Missing(ctx context.Context) []string {
	var missing []string
	if ok, what := a.conf.Installed(); !ok {
		missing = append(missing, "installation: "+what)
	}
	if !a.socket.at(a.conf.Socket) {
		missing = append(missing, "socket: nobody answers at "+a.conf.Socket)
	}
	if why := a.noLookups(ctx); why != "" {
		missing = append(missing, why)
	}
	return missing
}

// noLookups says why lookups can't be answered, "" if they can. A cache that was whole once answers for the pods that it has,
// however long the API server is silent after that. As long as it is not whole, lookups need the API server.
func (a *Agent) noLookups(ctx context.Context) string {
	if a.pods.isSynced() && a.config.settled() {
		return ""
	}
	if err := a.probe.ask(ctx, a.timing, a.live, a.conf.Dialect.Config); err != nil {
		return "cache: it is not complete, and the API server can't be asked instead: " + err.Error()
	}
	return ""
}

// probe is whether the API server could be asked for a lookup. Whoever reaches the agent's port may ask for its readiness, as
// often as he likes, so the answer is kept for a while.
type probe struct {
	mu  sync.Mutex
	at  time.Time
	err error
}

// ask makes the requests of a lookup if the last ones were made some time ago. Others who ask meanwhile wait for them.
func (p *probe) ask(ctx context.Context, t timing, api live, ref mesh.ConfigRef) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.at) >= t.probe {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.ready) // the answer is others' as well
		defer cancel()
		p.err = api.Ready(ctx, ref)
		p.at = time.Now()
	}
	return p.err
}
