package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/scripts/bench/internal/plot"
)

// writePlots writes the plots into a folder and says so.
func (l *lab) writePlots(folder string) error {
	for _, name := range slices.Sorted(maps.Keys(l.plots)) {
		file := filepath.Join(folder, name)
		if err := os.WriteFile(file, []byte(l.plots[name]), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "bench: drew %s\n", file)
	}
	return nil
}

// ratePlot shows the outbound rates of the backends.
func ratePlot(backends []string, rates map[track]float64) plot.Lines {
	p := plot.Lines{
		Title: "Connection rate by number of exclusions",
		Note:  fmt.Sprintf("One client opens outbound IPv4 connections, one after the other. Medians of %d rounds.", rateRounds),
		X:     "excluded address ranges (logarithmic)", Y: "thousand new connections per second",
		At: exclusionCounts,
	}
	for _, backend := range backends {
		line := plot.Line{Name: backend}
		for _, n := range exclusionCounts {
			line.Values = append(line.Values, rates[track{rules: backend, exclusions: n}]/1000)
		}
		p.Lines = append(p.Lines, line)
	}
	return p
}

// stages are those that an ADD's log line times, in order.
var stages = []plot.Part{
	{Name: "conf", About: "parse the net conf, open the log"},
	{Name: "lookup", About: "get the pod and the mesh's configuration"},
	{Name: "decide", About: "work out the pod's rules"},
	{Name: "enter", About: "enter and lock the pod's network namespace"},
	{Name: "save", About: "write the attachment record"},
	{Name: "apply", About: "program the kernel"},
}

// sources are where the plugin on a node gets the pod.
var sources = []struct{ name, about string }{{"agent", "pod from agent"}, {"api", "pod from API server"}}

// addPlot splits the median time of an ADD into the floor, detour's stages and the rest.
func (l *lab) addPlot(medians map[plugin]time.Duration) (plot.Stack, error) {
	p := plot.Stack{
		Title: "Where the time of an ADD goes",
		Note:  fmt.Sprintf("The whole process, nftables, IPv4 and IPv6. Medians of %d rounds.", rounds),
		X:     "milliseconds",
		Parts: slices.Concat(
			[]plot.Part{{Name: "floor", About: "a CNI plugin that only prints prevResult"}}, stages,
			[]plot.Part{{Name: "rest", About: "start a larger program, write the log, report"}}),
	}
	for _, source := range sources {
		ours := plugin{program: detour, verb: "ADD", source: source.name, backend: nftables.Name}
		log, err := os.ReadFile(l.logFile(ours))
		if err != nil {
			return p, err
		}
		taken, err := stageTimes(string(log))
		if err != nil {
			return p, fmt.Errorf("%s: %w", ours, err)
		}
		p.Bars = append(p.Bars, plot.Bar{Name: source.about, Values: addParts(inMS(medians[printing]), inMS(medians[ours]), taken)})
	}
	return p, nil
}

// addParts returns the parts of an ADD in milliseconds: the floor, the stages, and the rest of the whole.
func addParts(floor, whole float64, stages []float64) []float64 {
	rest := whole - floor
	for _, s := range stages {
		rest -= s
	}
	return slices.Concat([]float64{floor}, stages, []float64{max(rest, 0)})
}

func inMS(d time.Duration) float64 { return float64(d) / 1e6 }

func (l *lab) logFile(p plugin) string { return l.path(p.String() + ".log") }

// stageTimes returns the median of each stage in a log of ADDs, in milliseconds.
func stageTimes(log string) ([]float64, error) {
	all := map[string][]float64{}
	for line := range strings.Lines(log) {
		var entry struct{ MS map[string]float64 }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			return nil, fmt.Errorf("read the log: %w", err)
		}
		delete(entry.MS, "total")
		for name, ms := range entry.MS {
			all[name] = append(all[name], ms)
		}
	}
	var medians []float64
	for _, s := range stages {
		if len(all[s.Name]) == 0 {
			return nil, fmt.Errorf("read the log: it has no stage %q", s.Name)
		}
		medians = append(medians, median(all[s.Name]))
	}
	if len(all) != len(stages) {
		return nil, errors.New("read the log: it has unknown stages")
	}
	return medians, nil
}
