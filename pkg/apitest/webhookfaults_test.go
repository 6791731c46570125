//go:build kubeapi

package apitest

import (
	"context"
	"sync"
	"testing"

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
	s.eventually("all have a certificate", func() bool {
		for _, k := range replicas {
			if k.Missing() != "" {
				return false
			}
		}
		return true
	})
	if n := s.count("certificate-made"); n != 1 {
		t.Errorf("%d certificates were made", n)
	}
	for _, k := range replicas {
		if !k.Expiry().Equal(replicas[0].Expiry()) {
			t.Errorf("certificates until %s and %s", k.Expiry(), replicas[0].Expiry())
		}
	}
}
