package testcase

import (
	"context"
	"os"
	"testing"

	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
)

// Inside runs fn in a namespace that it has locked, as detour does to program it.
func Inside(t testing.TB, ns *nettest.Namespace, fn func(ctx context.Context, lock *os.File) error) error {
	t.Helper()
	pod, err := netns.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	lock, err := pod.Lock(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return pod.Do(func() error { return fn(t.Context(), lock) })
}
