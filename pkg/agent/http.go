package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/detour-cni/detour/pkg/kube"
)

func listenTCP(ctx context.Context, addr string) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
}

// serveHTTP serves metrics and health until ctx ends.
func (a *Agent) serveHTTP(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           a.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
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
	if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics and health: %w", err)
	}
	return nil
}

// handler serves /metrics, /healthz, which answers as long as the process does, and /readyz.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		missing := a.Missing(r.Context())
		if len(missing) == 0 {
			fmt.Fprintln(w, "ok")
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, strings.Join(missing, "\n"))
	})
	return mux
}

// Missing says what keeps this node from serving an ADD, one sentence each; nothing means that it would be served. The
// cache may be incomplete as long as the API server answers, which is tried then, with the requests of a lookup.
func (a *Agent) Missing(ctx context.Context) []string {
	var missing []string
	if ok, what := a.conf.Installed(); !ok {
		missing = append(missing, "installation: "+what)
	}
	if !a.socket.at(a.conf.Socket) {
		missing = append(missing, "socket: nobody answers at "+a.conf.Socket)
	}
	if !a.pods.isSynced() || !a.config.settled() {
		ctx, cancel := context.WithTimeout(ctx, a.timing.ready)
		defer cancel()
		if err := a.live.Ready(ctx, kube.ConfigRef(a.conf.Dialect.Config)); err != nil {
			missing = append(missing, "cache: it is not complete, and the API server can't be asked instead: "+err.Error())
		}
	}
	return missing
}
