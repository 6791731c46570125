package cniplugin_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// BenchmarkWholeProcess takes the wall time of whole plugin processes, interleaved, so that their ratios hold on a noisy
// machine: each iteration runs every kind once. It reports medians in milliseconds.
func BenchmarkWholeProcess(b *testing.B) {
	passthrough := filepath.Join(b.TempDir(), "passthrough")
	if out, err := exec.Command("go", "build", "-ldflags", "-s -w", "-o", passthrough, "./internal/passthrough").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	four := func(a *attachment) { a.conf["prevResult"] = prevResult("10.77.0.2/24") }
	kinds := []struct {
		name, verb string
		program    string // detour if empty
		setup      func(a *attachment)
	}{
		{"passthrough-ADD", "ADD", passthrough, four},
		{"ADD-excluded-namespace", "ADD", "", func(a *attachment) { a.conf["excludeNamespaces"] = []string{"shop"} }},
		{"ADD-manifests-IPv4", "ADD", "", four},
		{"ADD-manifests-both", "ADD", "", func(*attachment) {}},
		{"ADD-API-IPv4", "ADD", "", func(a *attachment) { four(a); apiServer(b, a, nil) }},
		{"DEL", "DEL", "", four},
	}
	attachments := make([]*attachment, len(kinds))
	for i, k := range kinds {
		attachments[i] = newAttachment(b, meshedPod(), meshConfig)
		k.setup(attachments[i])
	}
	took := make([][]time.Duration, len(kinds))
	for b.Loop() {
		for i, k := range kinds {
			a := attachments[i]
			if k.verb == "DEL" {
				a.must("ADD")
			}
			took[i] = append(took[i], a.timed(k.program, k.verb))
			a.must("DEL")
		}
	}
	for i, k := range kinds {
		slices.Sort(took[i])
		b.ReportMetric(float64(took[i][len(took[i])/2])/1e6, k.name+"-ms")
	}
	b.ReportMetric(0, "ns/op")
}

func (a *attachment) timed(program, verb string) time.Duration {
	a.t.Helper()
	cmd := a.command(verb)
	if program != "" {
		cmd.Path, cmd.Args = program, []string{program}
	}
	began := time.Now()
	if out, err := cmd.Output(); err != nil {
		a.t.Fatal(fmt.Errorf("%s: %w: %s", verb, err, out))
	}
	return time.Since(began)
}
