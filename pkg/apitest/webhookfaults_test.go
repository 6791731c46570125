//go:build kubeapi

package apitest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/cache"
	"github.com/detour-cni/detour/pkg/webhook/certificate"
)

// Whoever writes the Secret first, all take that certificate.
func TestFiftyReplicasThatStartAtOnceMakeOneCertificate(t *testing.T) {
	t.Parallel()
	s := newHookScene(t)
	config, err := cache.RESTConfig(s.conf.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	s.conf.Certificate.Log = s.conf.Log
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { stop(); running.Wait() })
	var replicas []*certificate.Keeper
	for range 50 {
		k, err := certificate.New(config, s.conf.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		replicas = append(replicas, k)
		running.Go(func() { k.Run(ctx) })
	}
	for i, k := range replicas {
		for deadline := time.Now().Add(2 * startTime); k.Missing() != ""; time.Sleep(pollTime) {
			if time.Now().After(deadline) {
				t.Fatalf("replica %d has no certificate: %s", i, k.Missing())
			}
		}
	}
	if n := s.count("certificate-made"); n != 1 {
		t.Errorf("%d certificates were made", n)
	}
	for _, k := range replicas {
		if !k.Expiry().Equal(replicas[0].Expiry()) {
			t.Errorf("certificates until %s and %s", k.Expiry(), replicas[0].Expiry())
		}
	}
}
