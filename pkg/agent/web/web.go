// Package web serves metrics and health of the agent and the webhook, and the webhook itself.
package web

import (
	"context"
	"crypto/tls"
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
)

// Listen listens at a TCP address.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", addr, err)
	}
	return l, nil
}

// Serve serves the handler until ctx ends. It closes the listener. Whatever connections others hold, a new one is served.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	return serve(ctx, l, maxConnections, newServer(h, log), time.Second)
}

// ServeTLS is Serve with TLS. When ctx ends, it goes on for as long as drain says, and then lets the requests in flight end.
func ServeTLS(ctx context.Context, l net.Listener, h http.Handler, conf *tls.Config, drain time.Duration, log *slog.Logger) error {
	s := newServer(h, log)
	s.TLSConfig = conf
	// Not HTTP/2: the bodies of requests whose handlers wait would fill their connection's buffer, and the others' would not arrive.
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	draining, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(drain, stop) })()
	return serve(draining, l, maxTLSConnections, s, s.WriteTimeout)
}

func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:        h,
		ReadTimeout:    5 * time.Second,
		WriteTimeout:   10 * time.Second,
		IdleTimeout:    2 * time.Minute, // longer than between two scrapes
		MaxHeaderBytes: 4 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// serve serves until ctx ends. Requests in flight then have so much time to end.
func serve(ctx context.Context, l net.Listener, limit int, server *http.Server, patience time.Duration) error {
	ended := make(chan struct{})
	defer func() { <-ended }()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		defer close(ended)
		<-ctx.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		if server.Shutdown(last) != nil {
			server.Close() //nolint:errcheck // it ends either way
		}
	}()
	run := server.Serve
	if server.TLSConfig != nil {
		run = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	if err := run(&fairListener{Listener: l, limit: limit}); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// Readiness says what keeps the node from serving an ADD, one sentence each. If nothing does, remark is what to add to "ok".
type Readiness func(context.Context) (missing []string, remark string)

// Handler serves /metrics, /healthz, which answers as long as the process does, and /readyz.
func Handler(metrics prometheus.Gatherer, readiness Readiness) http.Handler {
	mux := http.NewServeMux()
	// A page has some kilobytes; compressing one takes almost a megabyte.
	page := promhttp.HandlerOpts{DisableCompression: true}
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.GathererFunc(remember(metrics.Gather, freshMetrics)), page))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		missing, remark := readiness(r.Context())
		if len(missing) == 0 {
			fmt.Fprintln(w, "ok"+remark)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, strings.Join(missing, "\n"))
	})
	return mux
}

// freshMetrics is how long metrics are served without gathering them again, which takes ten times as long as all else.
const freshMetrics = time.Second

// remember returns a function that calls get only if its last result is older than age. It is safe for concurrent use.
func remember[T any](get func() (T, error), age time.Duration) func() (T, error) {
	var mu sync.Mutex
	var last T
	var err error
	var at time.Time
	return func() (T, error) {
		mu.Lock()
		defer mu.Unlock()
		if at.IsZero() || time.Since(at) >= age {
			last, err = get()
			at = time.Now()
		}
		return last, err
	}
}
