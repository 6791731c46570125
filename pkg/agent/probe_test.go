package agent

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
)

// overloaded is an API server that refuses all, and counts.
type overloaded struct{ asked int }

func (*overloaded) Lookup(context.Context, kube.Request) (kube.Objects, error) {
	return kube.Objects{}, errors.New("too many requests")
}

func (o *overloaded) Ready(context.Context, mesh.ConfigRef) error {
	o.asked++
	return errors.New("too many requests")
}

// All nodes of a cluster may ask.
func TestAnAPIServerThatRefusesIsAskedLessOften(t *testing.T) {
	t.Parallel()
	var p probe
	var api overloaded
	timing := timing{probe: 10 * time.Millisecond, ready: time.Second}
	for end := time.Now().Add(100 * timing.probe); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if p.ask(t.Context(), timing, &api, mesh.ConfigRef{}) == nil {
			t.Fatal("it has refused")
		}
	}
	if api.asked < 2 || api.asked > 40 {
		t.Errorf("asked %d times in the time of 100", api.asked)
	}
}
