package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// rounds is how often each plugin runs.
const rounds = 50

// contest returns the median time of each plugin. A round runs all of them in random order, each in a new pod.
func (l *lab) contest(ctx context.Context, plugins []plugin) (map[plugin]time.Duration, error) {
	all := map[plugin][]time.Duration{}
	for range rounds {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err := l.round(plugins, all); err != nil {
			return nil, err
		}
	}
	medians := map[plugin]time.Duration{}
	for p, times := range all {
		medians[p] = median(times)
	}
	return medians, nil
}

func (l *lab) round(plugins []plugin, all map[plugin][]time.Duration) error {
	return withPods(len(plugins), func(pods []*nettest.World) error {
		for i, p := range plugins {
			if err := l.prepare(p, pods[i].Pod); err != nil {
				return err
			}
		}
		for _, i := range rand.Perm(len(plugins)) {
			took, err := l.timed(plugins[i], pods[i].Pod)
			if err != nil {
				return err
			}
			all[plugins[i]] = append(all[plugins[i]], took)
		}
		return nil
	})
}

// prepare gives a DEL something to delete.
func (l *lab) prepare(p plugin, ns *nettest.Namespace) error {
	if p.verb != "DEL" {
		return nil
	}
	p.verb = "ADD"
	_, err := l.timed(p, ns)
	return err
}

// withPods calls fn with n new pods. They have interfaces and no rules.
func withPods(n int, fn func([]*nettest.World) error) (err error) {
	var pods []*nettest.World
	defer func() {
		for _, p := range pods {
			err = errors.Join(err, p.Close())
		}
	}()
	for range n {
		p, err := nettest.NewWorld()
		if err != nil {
			return err
		}
		pods = append(pods, p)
	}
	return fn(pods)
}
