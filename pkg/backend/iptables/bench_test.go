package iptables

import (
	"context"
	"os"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// Both families, each time in a new namespace.
func BenchmarkApply(b *testing.B) {
	nettest.RequireNetns(b)
	want := Compile(policy().Ruleset(), rules.Families)
	for _, backend := range Installed(b.Context()) {
		b.Run(backend.Name(), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				ns, err := nettest.NewNamespace("bench")
				if err != nil {
					b.Fatal(err)
				}
				apply := func(ctx context.Context, lock *os.File) error {
					b.StartTimer()
					defer b.StopTimer()
					return backend.Apply(ctx, lock, want, nil)
				}
				if err := testcase.Inside(b, ns, apply); err != nil {
					b.Fatal(err)
				}
				if err := ns.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
