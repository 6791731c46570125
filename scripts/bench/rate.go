package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/nettest"
)

const (
	rateRounds = 41
	rateTime   = 30 * time.Millisecond // of each round
)

// connectionRates compares the rates at which one client opens connections, one after the other.
func connectionRates(ctx context.Context, l *lab) ([]row, error) {
	tracks := l.tracks()
	all := make([][]float64, len(tracks))
	err := withPods(len(tracks), func(pods []*nettest.World) error {
		for i, t := range tracks {
			if err := l.lay(ctx, t, pods[i].Pod); err != nil {
				return fmt.Errorf("%s: %w", t, err)
			}
		}
		for range rateRounds {
			for _, i := range rand.Perm(len(tracks)) {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				rate, err := connectionRate(pods[i], tracks[i])
				if err != nil {
					return fmt.Errorf("%s: %w", tracks[i], err)
				}
				all[i] = append(all[i], rate)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	rates := map[track]float64{}
	for i, t := range tracks {
		rates[t] = median(all[i])
	}
	l.plots["connection-rate.svg"] = ratePlot(l.present(backends...), rates).SVG()
	return append(l.missing("4", "new connections, "), rateRows(tracks, rates)...), nil
}

// rateRows compares each track with the client that dials the proxy itself, or, if it has exclusions, with the same backend
// without them. Our rules are also compared with the fewest that redirect at all.
func rateRows(tracks []track, rates map[track]float64) []row {
	var rows []row
	for _, t := range tracks {
		floor, what := t, fmt.Sprintf("new connections %s, %s", t.direction(), t.rules)
		var least limit
		if t.exclusions == 0 {
			floor.rules = nothing
		} else {
			floor.exclusions = 0
			what += fmt.Sprintf(", %d exclusions", t.exclusions)
			if t.rules == nftables.Name && t.exclusions == many {
				least = limit{value: 0.95, atLeast: true}
			}
		}
		rows = append(rows, rated(what, rates[floor], rates[t], least))
		if t.rules == nftables.Name && t.exclusions == 0 {
			floor.rules = threeRules
			rows = append(rows, rated(what+" against "+threeRules, rates[floor], rates[t], limit{value: 0.98, atLeast: true}))
		}
	}
	return rows
}

// rated is the row of two rates per second.
func rated(what string, floor, detour float64, l limit) row {
	ratio := detour / floor
	return row{"4", what, perSecond(floor), perSecond(detour), fmt.Sprintf("%.2f", ratio), l.String(), l.verdict(ratio)}
}

func perSecond(rate float64) string { return fmt.Sprintf("%.1fk/s", rate/1000) }
