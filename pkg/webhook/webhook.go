// Package webhook is detour's admission webhook. It makes the changes of pkg/admission in injected pods, and says of pods, workloads
// and mesh configurations what ADD would refuse or warn of. It decides nothing itself: the namespace's label chooses the path, and
// pkg/admission does the rest. certificate keeps its certificate.
package webhook

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/detour-cni/detour/pkg/agent/cache"
	"github.com/detour-cni/detour/pkg/agent/web"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/webhook/certificate"
)

// Config is what a webhook is made of. All but Kubeconfig is required.
type Config struct {
	// Options are the net conf's.
	decision.Options
	// Addresses are those of the webhook's own pod; see Judge.
	Addresses []netip.Addr
	// Certificate says which certificate to serve. Its Log is not used.
	Certificate certificate.Options
	// Addr is where reviews are served, MetricsAddr where metrics and health are.
	Addr, MetricsAddr string
	// Kubeconfig is a path; "" means the pod's ServiceAccount.
	Kubeconfig string
	// Drain is for how long the webhook serves on after it was told to stop: until no API server connects any more.
	Drain time.Duration
	Log   *slog.Logger
}

// Server is the webhook's server.
type Server struct {
	conf     Config
	keeper   *certificate.Keeper
	configs  *cache.OnDemand
	cluster  *cluster
	metrics  *metrics
	stopping atomic.Bool
}

const (
	// recheck is how often a mesh configuration is looked for that the API server does not serve yet.
	recheck = 5 * time.Second
	// lookupTime bounds a request for a configuration that is not followed: a review has 5 s.
	lookupTime = 2 * time.Second
)

// New makes a server. It reads the credentials and makes no request.
func New(conf Config) (*Server, error) {
	config, err := cache.RESTConfig(conf.Kubeconfig)
	if err != nil {
		return nil, err
	}
	config.UserAgent = "detour-webhook"
	conf.Certificate.Log = conf.Log
	s := &Server{conf: conf}
	if s.keeper, err = certificate.New(config, conf.Certificate); err != nil {
		return nil, err
	}
	client, err := cache.NewClient(config, conf.Dialect.Config)
	if err != nil {
		return nil, err
	}
	live, err := cache.NewLive(config, cmp.Or(conf.Kubeconfig, "the ServiceAccount"))
	if err != nil {
		return nil, err
	}
	s.configs = cache.NewOnDemand(client, live, cache.Options{Dialect: conf.Dialect, Recheck: recheck, Log: conf.Log})
	s.cluster = &cluster{get: client.Get, pause: pause, log: conf.Log}
	s.metrics = newMetrics(s.keeper.Expiry)
	return s, nil
}

// Run serves until ctx ends or something fails that the webhook can't do without, which is the error. Reviews in flight are answered.
// Everything it has started has ended when it returns.
func (s *Server) Run(ctx context.Context) error {
	reviews, err := web.Listen(ctx, s.conf.Addr)
	if err != nil {
		return err
	}
	defer reviews.Close() //nolint:errcheck // closed already, but for an error below
	metrics, err := web.Listen(ctx, s.conf.MetricsAddr)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() {
		s.stopping.Store(true)
		s.conf.Log.Info("told to stop; serving on until no API server connects", "event", "stopping")
	})()
	// What the reviews need goes on until the last of them is answered.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var parts sync.WaitGroup
	defer parts.Wait()
	defer stop()
	for _, run := range []func(context.Context){s.keeper.Run, s.configs.Run, s.cluster.run} {
		parts.Go(func() { run(background) })
	}
	serving, failed := context.WithCancelCause(ctx)
	defer failed(nil)
	parts.Go(func() {
		if err := web.Serve(background, metrics, web.Handler(s.metrics.registry, s.readiness), s.conf.Log); err != nil {
			failed(err)
		}
	})
	conf := &tls.Config{GetCertificate: s.keeper.Get, MinVersion: tls.VersionTLS12}
	err = web.ServeTLS(serving, reviews, s.handler(), conf, s.conf.Drain, s.conf.Log)
	if cause := context.Cause(serving); err == nil && cause != nil && ctx.Err() == nil {
		err = cause
	}
	return err
}

func (s *Server) handler() *Reviews {
	return NewReviews(Judge{Options: s.conf.Options, Addresses: s.conf.Addresses, ConfigOf: s.configOf, Sidecars: s.cluster.sidecars}, Observer{
		Done: s.metrics.count,
		Refused: func(path string, r *admissionv1.AdmissionRequest, sentence string) {
			s.conf.Log.Info("request refused", "event", "request-refused", "path", path, "kind", r.Kind.Kind,
				"object", r.Namespace+"/"+nameOf(r), "user", r.UserInfo.Username, "reason", sentence)
		},
	})
}

// configOf returns what is known of a mesh's configuration. If the API server does not say in time, neither is known.
func (s *Server) configOf(ref mesh.ConfigRef) (config []byte, absent string) {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTime)
	defer cancel()
	c, err := s.configs.ConfigOf(ctx, ref)
	if err != nil {
		return nil, ""
	}
	return c.JSON, c.Absent
}

// readiness says what keeps the webhook from answering reviews.
func (s *Server) readiness(context.Context) (missing []string, remark string) {
	if s.stopping.Load() {
		missing = append(missing, "server: it was told to stop")
	}
	if why := s.keeper.Missing(); why != "" {
		missing = append(missing, "certificate: "+why)
	}
	if !s.configs.HasConfig() {
		missing = append(missing, "configuration: it is not known yet what "+s.conf.Dialect.Config.String()+" says")
	}
	return missing, ""
}
