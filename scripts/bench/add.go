package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/backend/nftables"
)

// comparison is a row that compares two plugins.
type comparison struct {
	number, what  string
	floor, detour plugin
	most          float64 // of the ratio
}

// printing is the smallest plugin: it only prints prevResult.
var printing = plugin{program: floor, verb: "ADD"}

// alike is the largest ratio that still counts as equal.
const alike = 1.05

// comparisons are all pairs of plugins that run one at a time. A floor with a backend programs the same rules as detour.
var comparisons = []comparison{
	{
		"1", "ADD, nftables, pod from a file",
		plugin{program: floor, verb: "ADD", backend: nftables.Name},
		plugin{program: detour, verb: "ADD", source: "manifests", backend: nftables.Name}, 1.3,
	},
	{
		"1", "ADD, nftables, pod from the agent",
		plugin{program: floor, verb: "ADD", backend: nftables.Name},
		plugin{program: detour, verb: "ADD", source: "agent", backend: nftables.Name}, 1.3,
	},
	{
		"2", "ADD, nftables, pod from the API server",
		plugin{program: floorGet, verb: "ADD", backend: nftables.Name},
		plugin{program: detour, verb: "ADD", source: "api", backend: nftables.Name}, 1.25,
	},
	restoring("iptables-nft", true), restoring("iptables-nft", false),
	restoring("iptables-legacy", true), restoring("iptables-legacy", false),
	deleting(nftables.Name), deleting("iptables-nft"), deleting("iptables-legacy"),
	whileLocked("iptables-nft"), whileLocked("iptables-legacy"),
}

func restoring(backend string, v4only bool) comparison {
	families := "both families"
	if v4only {
		families = "IPv4"
	}
	return comparison{
		"3", "ADD, " + backend + ", " + families + ", pod from the API server",
		plugin{program: floorGet, verb: "ADD", backend: backend, v4only: v4only},
		plugin{program: detour, verb: "ADD", source: "api", backend: backend, v4only: v4only}, 1.25,
	}
}

func deleting(backend string) comparison {
	return comparison{"3", "DEL, " + backend, printing, plugin{program: detour, verb: "DEL", source: "manifests", backend: backend}, 2}
}

func whileLocked(backend string) comparison {
	free := plugin{program: detour, verb: "ADD", source: "manifests", backend: backend}
	locked := free
	locked.locked = true
	return comparison{"6", "ADD, " + backend + ", xtables.lock held", free, locked, alike}
}

// oneAtATime checks that each comparison is fair, then times all plugins.
func oneAtATime(ctx context.Context, l *lab) ([]row, error) {
	var plugins []plugin
	seen := map[plugin]bool{}
	for _, c := range comparisons {
		if l.absent[c.detour.backend] != "" {
			continue
		}
		if err := l.fair(c); err != nil {
			return nil, fmt.Errorf("%s: %w", c.what, err)
		}
		for _, p := range []plugin{c.floor, c.detour} {
			if !seen[p] {
				plugins = append(plugins, p)
			}
			seen[p] = true
		}
	}
	medians, err := l.contest(ctx, plugins)
	if err != nil {
		return nil, err
	}
	times, err := l.addPlot(medians)
	if err != nil {
		return nil, err
	}
	l.plots["add-time.svg"] = times.SVG()
	var rows []row
	for _, c := range comparisons {
		if why := l.absent[c.detour.backend]; why != "" {
			rows = append(rows, row{number: c.number, what: c.what, verdict: "not here: " + why})
			continue
		}
		rows = append(rows, compared(c.number, c.what, medians[c.floor], medians[c.detour], limit{value: c.most}))
	}
	return rows, nil
}

// xtablesLock is the lock that every iptables-legacy on the host waits for.
const xtablesLock = "/run/xtables.lock"

// holdXtablesLock takes the lock. Closing the file releases it.
func holdXtablesLock() (*os.File, error) {
	file, err := os.OpenFile(xtablesLock, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", xtablesLock, err), file.Close())
	}
	return file, nil
}
