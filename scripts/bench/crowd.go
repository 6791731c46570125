package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/nettest"
)

const (
	crowd       = 100 // ADDs at once
	crowdRounds = 7
)

// manyAtOnce compares the wall times of a crowd of processes, from the start of the first to the end of the last.
func manyAtOnce(ctx context.Context, l *lab) ([]row, error) {
	least := plugin{program: floor, verb: "ADD", backend: nftables.Name}
	ours := plugin{program: detour, verb: "ADD", source: "manifests", backend: nftables.Name}
	times := map[plugin][]time.Duration{}
	for range crowdRounds {
		for _, p := range []plugin{least, ours} {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			took, err := l.atOnce(p)
			if err != nil {
				return nil, err
			}
			times[p] = append(times[p], took)
		}
	}
	return []row{compared("6", fmt.Sprintf("%d ADDs at once, nftables", crowd), median(times[least]), median(times[ours]), limit{value: 1.3})}, nil
}

// atOnce runs a crowd of plugins at once, each in a new pod.
func (l *lab) atOnce(p plugin) (time.Duration, error) {
	var took time.Duration
	err := withPods(crowd, func(pods []*nettest.World) error {
		errs := make(chan error, crowd)
		began := time.Now()
		for _, pod := range pods {
			go func() {
				_, err := l.timed(p, pod.Pod)
				errs <- err
			}()
		}
		var err error
		for range crowd {
			err = cmp.Or(err, <-errs) // one error is enough
		}
		took = time.Since(began)
		return err
	})
	return took, err
}
