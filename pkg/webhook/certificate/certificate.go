// Package certificate keeps a webhook's serving certificate: in memory for TLS, in a Secret that all replicas share, and its authority
// in the caBundle of the webhook's configurations. Or it follows a certificate that somebody else keeps in the Secret.
//
// Certificate and authority are client-go's (util/cert), one authority for each certificate, so that no authority's key exists
// anywhere. A renewal keeps the previous certificate beside the new one. Each replica serves the previous one until the API
// servers have had the time to learn of the new authority: no request meets an authority that they don't know.
//
// Why no library: open-policy-agent/cert-controller needs controller-runtime and waits until the kubelet has mounted the Secret, or
// restarts the process; openshift/library-go needs the typed clientset and changes the authority without keeping the old
// certificate.
package certificate

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Options say which certificate a Keeper keeps, and where.
type Options struct {
	// Host is what the API server calls the webhook: SERVICE.NAMESPACE.svc.
	Host string
	// Secret is the name of an existing Secret in Namespace.
	Namespace, Secret string
	// Configuration is the name of the webhook's mutating and validating configurations; either may be missing.
	Configuration string
	// External means that somebody else keeps Secret and caBundle: the Secret is only read.
	External bool
	// Timing is for tests. Zero values mean the usual ones.
	Timing Timing
	Log    *slog.Logger
}

// Timing is how long what takes.
type Timing struct {
	Life   time.Duration // of a certificate; it is renewed when a third is left
	Settle time.Duration // after which all API servers know an authority that is in the caBundle
	Check  time.Duration // between looks, if nothing changes
}

var usual = Timing{Life: 90 * 24 * time.Hour, Settle: 10 * time.Minute, Check: time.Minute}

func (t Timing) withDefaults() Timing {
	return Timing{cmp.Or(t.Life, usual.Life), cmp.Or(t.Settle, usual.Settle), cmp.Or(t.Check, usual.Check)}
}

// Keeper keeps a certificate. Its methods are safe for concurrent use.
type Keeper struct {
	o       Options
	core    *rest.RESTClient
	secret  cache.SharedInformer
	hooks   []hooks
	changed chan struct{}
	serving atomic.Pointer[pair]

	settling *pair     // the last certificate whose authority the caBundles had
	since    time.Time // and since when; only Run uses the two

	mu      sync.Mutex
	trusted bool  // a caBundle that we served under was once in place
	problem error // what the last look met
}

// New prepares a Keeper. It makes no request.
func New(config *rest.Config, o Options) (*Keeper, error) {
	o.Timing = o.Timing.withDefaults()
	k := &Keeper{o: o, changed: make(chan struct{}, 1), problem: notSent("anything")}
	var err error
	if k.core, err = newClient(config, corev1.SchemeGroupVersion, "/api"); err != nil {
		return nil, err
	}
	k.secret = k.follow(k.core, "secrets", o.Namespace, o.Secret, &corev1.Secret{})
	if !o.External {
		k.hooks, err = k.followHooks(config)
	}
	return k, err
}

// Run keeps the certificate until ctx ends, whatever the API server does.
func (k *Keeper) Run(ctx context.Context) {
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { k.secret.RunWithContext(ctx) })
	for _, h := range k.hooks {
		parts.Go(func() { h.objects.RunWithContext(ctx) })
	}
	said := ""
	for ctx.Err() == nil {
		err := k.look(ctx, time.Now())
		k.mu.Lock()
		k.problem = err
		k.mu.Unlock()
		now := ""
		if err != nil && !errors.As(err, new(notSent)) {
			now = err.Error()
		}
		if now != "" && now != said && ctx.Err() == nil {
			k.o.Log.Warn("certificate or its caBundle not kept; trying again", "event", "certificate-failed", "error", now)
		}
		said = now
		k.pause(ctx)
	}
}

// notSent is what the API server has not sent yet. If it refuses to, the log says so.
type notSent string

func (n notSent) Error() string { return "the API server has not sent " + string(n) + " yet" }

// calm is the least time between two looks, so that nobody who undoes every change keeps the replicas busy.
const calm = 100 * time.Millisecond

// pause waits until something has changed, or for a while.
func (k *Keeper) pause(ctx context.Context) {
	check := time.After(k.o.Timing.Check)
	select {
	case <-ctx.Done():
	case <-time.After(calm):
	}
	select {
	case <-ctx.Done():
	case <-k.changed:
	case <-check:
	}
}

// Get returns the certificate to serve, for tls.Config.
func (k *Keeper) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if p := k.serving.Load(); p != nil {
		return p.tls, nil
	}
	return nil, errors.New("there is no certificate yet")
}

// Expiry is when the certificate that is served expires; zero if there is none.
func (k *Keeper) Expiry() time.Time {
	if p := k.serving.Load(); p != nil {
		return p.expiry()
	}
	return time.Time{}
}

// Missing says what keeps API servers from trusting the webhook, "" if nothing does. A caBundle that somebody spoils later does not
// count: without the webhook nobody would mend it.
func (k *Keeper) Missing() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.serving.Load()
	why := "the API server does not know it yet"
	if k.problem != nil {
		why = k.problem.Error()
	}
	if p != nil && p.check(k.o.Host, time.Now()) == nil && (k.trusted || k.o.External) {
		return ""
	}
	return why
}
