package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"sync"
	"testing"
	"time"
)

// start runs the Keeper until stop or the test's end.
func start(t *testing.T, k *Keeper) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { k.Run(ctx) })
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

func ready(t *testing.T, k *Keeper) {
	t.Helper()
	eventually(t, "the certificate is there", func() bool { return k.Missing() == "" })
}

// trusts reports whether a client that has the caBundle would talk to the Keeper's server by the name.
func trusts(bundle string, k *Keeper) bool {
	served, err := k.Get(nil)
	if err != nil {
		return false
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(bundle))
	for _, der := range served.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	_, err = served.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: host})
	return err == nil
}

func wantTrusted(t *testing.T, s *api, keepers ...*Keeper) {
	t.Helper()
	for _, bundle := range s.bundles() {
		for i, k := range keepers {
			if !trusts(bundle, k) {
				t.Errorf("caBundle\n%s\ndoes not vouch for what replica %d serves", bundle, i)
			}
		}
	}
}

func TestTwoReplicasUseOneCertificate(t *testing.T) {
	t.Parallel()
	s := newAPI(t)
	one, two := s.keeper(nil), s.keeper(nil)
	if one.Missing() == "" || !one.Expiry().IsZero() {
		t.Errorf("before it runs: %q, %s", one.Missing(), one.Expiry())
	}
	if _, err := one.Get(&tls.ClientHelloInfo{}); err == nil {
		t.Error("there is a certificate before it runs")
	}
	start(t, one)
	start(t, two)
	ready(t, one)
	ready(t, two)
	wantTrusted(t, s, one, two)
	if !one.serving.Load().equal(two.serving.Load()) {
		t.Error("the two serve different ones")
	}
	if life := time.Until(one.Expiry()); life < 89*24*time.Hour || life > 91*24*time.Hour {
		t.Errorf("it lasts for %s", life)
	}
	if got := len(s.stored()); got != 2 {
		t.Errorf("the Secret has %d values", got)
	}
	for _, hook := range s.mutating.Webhooks {
		if hook.Name == "" || len(s.mutating.Webhooks) != 2 {
			t.Errorf("the configuration has become %v", s.mutating)
		}
	}
}

// follow starts only the caches: the test says when the Keeper looks, and what time it is then.
func follow(t *testing.T, k *Keeper) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { k.secret.RunWithContext(ctx) })
	for _, h := range k.hooks {
		running.Go(func() { h.objects.RunWithContext(ctx) })
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// lookAt looks until there is nothing to do at this time but to wait.
func lookAt(t *testing.T, s *api, k *Keeper, now time.Time) {
	t.Helper()
	eventually(t, "all is done", func() bool {
		if err := k.look(t.Context(), now); err != nil {
			return false
		}
		secret, err := k.stored()
		return err == nil && string(secret.Data[crtKey]) == s.stored()[crtKey] && k.settling != nil && string(k.settling.crt) == s.stored()[crtKey]
	})
	wantTrusted(t, s, k)
}

// The new certificate is not served before the API servers have had the time to learn of its authority.
func TestARenewalOverlaps(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	s := newAPI(t)
	k, other := s.keeper(nil), s.keeper(nil)
	k.o.Timing, other.o.Timing = usual, usual
	k.o.Timing.Life = 25 * day // of the first one
	follow(t, k)
	follow(t, other)
	now := time.Now()
	lookAt(t, s, k, now)
	first := k.serving.Load()
	lookAt(t, s, k, now.Add(16*day))
	if s.stored()[crtKey] != string(first.crt) {
		t.Fatal("it was renewed before two thirds of its life")
	}
	k.o.Timing.Life = 90 * day // of which the first one has less than a third left
	lookAt(t, s, k, now)
	lookAt(t, s, k, now.Add(9*time.Minute))
	if s.stored()[crtKey] == string(first.crt) || s.stored()[previousCrtKey] != string(first.crt) || !k.serving.Load().equal(first) {
		t.Errorf("it was not renewed, or the old one is not served on")
	}
	// A replica that starts now does not know how long the API servers have known the new one.
	lookAt(t, s, other, now.Add(11*time.Minute))
	if !other.serving.Load().equal(first) {
		t.Error("another replica serves the new one at once")
	}
	lookAt(t, s, k, now.Add(11*time.Minute))
	second := k.serving.Load()
	if string(second.crt) != s.stored()[crtKey] {
		t.Error("the new one is not served")
	}
	s.change(func() { s.mutating.Webhooks[0].ClientConfig.CABundle = nil }) // no reason to go back
	eventually(t, "it is mended", func() bool { return k.look(t.Context(), now.Add(12*time.Minute)) == nil && s.bundles()[0] != "" })
	if !k.serving.Load().equal(second) {
		t.Error("it serves the old one again")
	}
	// The other one has overslept.
	if err := other.look(t.Context(), now.Add(26*day)); err != nil || !other.serving.Load().equal(second) {
		t.Errorf("it does not serve the new one when the old one has expired: %v", err)
	}
}

// Without the right to write a caBundle the old certificate is served for as long as it lasts.
func TestAnAuthorityThatNobodyKnowsIsNotUsed(t *testing.T) {
	t.Parallel()
	s := newAPI(t)
	k := s.keeper(nil)
	start(t, k)
	ready(t, k)
	first := k.serving.Load()
	s.change(func() {
		s.refuse["PATCH validatingwebhookconfigurations"] = true
		s.secret.Data = nil
	})
	eventually(t, "there is a new one", func() bool { return s.stored()["previous.crt"] == string(first.crt) })
	writes := func() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.writes) }
	for n := writes(); writes() < n+5; time.Sleep(10 * time.Millisecond) {
		wantTrusted(t, s, k)
	}
	s.change(func() { delete(s.refuse, "PATCH validatingwebhookconfigurations") })
	eventually(t, "the new one is served", func() bool { return !k.serving.Load().equal(first) })
	wantTrusted(t, s, k)
}

// Nobody may take a webhook for ready that no API server trusts yet.
func TestWithoutACaBundleItIsNotReady(t *testing.T) {
	t.Parallel()
	s := newAPI(t)
	s.refuse["PATCH mutatingwebhookconfigurations"] = true
	k := s.keeper(nil)
	start(t, k)
	eventually(t, "it says why", func() bool { return strings.HasPrefix(k.Missing(), "write the caBundle: ") })
	if k.serving.Load() == nil {
		t.Error("it serves no certificate: where somebody else writes the caBundle, it could")
	}
	s.change(func() { delete(s.refuse, "PATCH mutatingwebhookconfigurations") })
	ready(t, k)
}

func TestWithoutTheSecretTheReasonIsTold(t *testing.T) {
	t.Parallel()
	s := newAPI(t)
	s.change(func() { s.secret = nil })
	k := s.keeper(nil)
	start(t, k)
	eventually(t, "it says so", func() bool {
		return k.Missing() == "Secret detour-system/detour-webhook does not exist: apply the webhook's manifests again"
	})
}

// What was served goes on being served, whatever becomes of the Secret.
func TestADeletedSecretStopsNothing(t *testing.T) {
	t.Parallel()
	s := newAPI(t)
	k := s.keeper(nil)
	start(t, k)
	ready(t, k)
	before := k.serving.Load()
	s.change(func() { s.secret = nil })
	eventually(t, "it was noticed", func() bool { k.mu.Lock(); defer k.mu.Unlock(); return k.problem != nil })
	if k.Missing() != "" || !k.serving.Load().equal(before) {
		t.Errorf("%q", k.Missing())
	}
}

// A configuration that somebody does without is not missed.
func TestWithoutTheValidatingConfiguration(t *testing.T) {
	t.Parallel()
	s := newAPI(t)
	s.change(func() { s.validating = nil })
	k := s.keeper(nil)
	start(t, k)
	ready(t, k)
	if !trusts(string(s.mutating.Webhooks[0].ClientConfig.CABundle), k) {
		t.Error("the other one has no caBundle")
	}
}

// A stale view of the Secret takes no authority out of a caBundle that another replica has put in.
func TestABundleMayHaveMore(t *testing.T) {
	t.Parallel()
	s := newAPI(t)
	k := s.keeper(nil)
	stop := start(t, k)
	ready(t, k)
	stop()
	other, err := newPair(host, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	more := string(other.authority()) + s.bundles()[0]
	s.change(func() {
		s.mutating.Webhooks[0].ClientConfig.CABundle = []byte(more)
		s.mutating.Webhooks[1].ClientConfig.CABundle = nil
	})
	again := s.keeper(nil)
	start(t, again)
	ready(t, again)
	if got := s.bundles(); got[0] != more || !trusts(got[1], again) {
		t.Errorf("it made of them %q", got)
	}
}

func TestExternalOnlyReads(t *testing.T) {
	t.Parallel()
	s := newAPI(t)
	k := s.keeper(func(o *Options) { o.External = true })
	start(t, k)
	eventually(t, "it says that there is none", func() bool {
		return k.Missing() == "the certificate in Secret detour-system/detour-webhook can't be used: there is none"
	})
	for range 2 {
		theirs, err := newPair(host, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		s.change(func() { s.secret.Data = map[string][]byte{crtKey: theirs.crt, keyKey: theirs.key} })
		eventually(t, "it is served", func() bool { return k.serving.Load().equal(theirs) && k.Missing() == "" })
	}
	s.change(func() { s.secret.Data = nil })
	eventually(t, "it was noticed", func() bool { k.mu.Lock(); defer k.mu.Unlock(); return k.problem != nil })
	if k.Missing() != "" || len(s.writes) > 0 {
		t.Errorf("%q, it wrote %q", k.Missing(), s.writes)
	}
}

func TestWhatCanServe(t *testing.T) {
	t.Parallel()
	good, err := newPair(host, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, tt := range []struct {
		host string
		at   time.Time
		want string
	}{
		{host, now, ""},
		{"other.svc", now, "not other.svc"},
		{host, now.Add(2 * time.Hour), "it expired at 20"},
		{host, now.Add(-2 * time.Hour), "it is not valid before 20"},
	} {
		got := ""
		if err := good.check(tt.host, tt.at); err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
			t.Errorf("%s at %s: %q, want %q", tt.host, tt.at, got, tt.want)
		}
	}
}
