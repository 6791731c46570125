package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/nettest"
)

// The most that detour may take of a node.
const (
	mostBinary = 12e6 // bytes
	mostMemory = 24e6 // bytes
	mostInit   = 1.0  // ms
)

// samples is how often each figure is measured.
const samples = 21

// footprint measures the size of the binary, and the memory and start-up of its process.
func footprint(ctx context.Context, l *lab) ([]row, error) {
	file, err := os.Stat(filepath.Join(l.bin, detour))
	if err != nil {
		return nil, err
	}
	rows := []row{absolute("size of the binary", float64(file.Size())/1e6, "MB", mostBinary/1e6)}
	for _, source := range []struct{ name, what string }{{"agent", "the agent"}, {"api", "the API server"}} {
		p := plugin{program: detour, verb: "ADD", source: source.name, backend: nftables.Name}
		memory, err := sampled(ctx, l, p, peakMemory, median)
		if err != nil {
			return nil, err
		}
		rows = append(rows, absolute("peak memory, pod from "+source.what, memory/1e6, "MB", mostMemory/1e6))
	}
	// The work is the same each time, so any time above the least is noise.
	initTime, err := sampled(ctx, l, plugin{program: detour, verb: "ADD", source: "agent", backend: nftables.Name}, packageInit, slices.Min)
	if err != nil {
		return nil, err
	}
	return append(rows, absolute("package initialization, the least", initTime, "ms", mostInit)), nil
}

// absolute is the row of a value without a floor.
func absolute(what string, value float64, unit string, most float64) row {
	l := limit{value: most}
	return row{"7", what, "", fmt.Sprintf("%.2f %s", value, unit), "", l.String() + " " + unit, l.verdict(value)}
}

// sampled measures several runs of a plugin, each in a new pod, and returns the value that one picks.
func sampled(ctx context.Context, l *lab, p plugin, take func(*lab, *exec.Cmd) (float64, error), one func([]float64) float64) (float64, error) {
	var values []float64
	err := withPods(samples, func(pods []*nettest.World) error {
		for _, pod := range pods {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			v, err := take(l, l.command(p, pod.Pod))
			if err != nil {
				return fmt.Errorf("%s: %w", p, explained(err))
			}
			values = append(values, v)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return one(values), nil
}

// peakMemory runs the plugin and returns its peak resident memory, in bytes.
func peakMemory(l *lab, cmd *exec.Cmd) (float64, error) {
	maxrss := filepath.Join(l.bin, "maxrss")
	cmd.Path, cmd.Args = maxrss, []string{maxrss, cmd.Path}
	out, err := cmd.Output()
	if err != nil {
		return 0, err
	}
	kib, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	return kib * 1024, err
}

// packageInit runs the plugin and returns how long its package initialization takes, in milliseconds.
func packageInit(_ *lab, cmd *exec.Cmd) (float64, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Env = append(cmd.Env, "GODEBUG=inittrace=1")
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	return sumInitTrace(stderr.String())
}

// sumInitTrace adds up the clock times of GODEBUG=inittrace=1, in milliseconds. A line of it is
// "init net @0.56 ms, 0.013 ms clock, 4800 bytes, 60 allocs".
func sumInitTrace(trace string) (float64, error) {
	var sum float64
	lines := 0
	for line := range strings.Lines(trace) {
		if !strings.HasPrefix(line, "init ") {
			continue
		}
		_, rest, _ := strings.Cut(line, " ms, ")
		clock, _, ok := strings.Cut(rest, " ms clock")
		v, err := strconv.ParseFloat(clock, 64)
		if !ok || err != nil {
			return 0, fmt.Errorf("read the trace of package initialization: %q is not a line of it", strings.TrimSpace(line))
		}
		sum += v
		lines++
	}
	if lines == 0 {
		return 0, errors.New("read the trace of package initialization: it is empty")
	}
	return sum, nil
}
