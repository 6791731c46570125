package main

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// The log of a real ADD has the stages that the plot knows, and a bar is as long as the whole ADD.
func TestAddPlot(t *testing.T) {
	l := startLab(t)
	medians := map[plugin]time.Duration{printing: time.Millisecond}
	for _, source := range sources {
		p := plugin{program: detour, verb: "ADD", source: source.name, backend: "nftables"}
		medians[p] = time.Hour
		err := withPods(1, func(pods []*nettest.World) error {
			_, err := l.timed(p, pods[0].Pod)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	p, err := l.addPlot(medians)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Bars) != len(sources) {
		t.Errorf("it has %d bars", len(p.Bars))
	}
	for _, b := range p.Bars {
		sum := 0.0
		for _, v := range b.Values {
			sum += v
		}
		if len(b.Values) != len(p.Parts) || b.Values[0] != 1 || math.Abs(sum-3600_000) > 0.01 {
			t.Errorf("%s has %v", b.Name, b.Values)
		}
	}
}

func TestStageTimes(t *testing.T) {
	t.Parallel()
	line := func(conf, more string) string {
		return `{"level":"INFO","ms":{"conf":` + conf + `,"lookup":2,"decide":3,"enter":4,"save":5,"apply":6` + more + `,"total":21}}` + "\n"
	}
	got, err := stageTimes(line("1", "") + line("9", "") + line("2", ""))
	if want := []float64{2, 2, 3, 4, 5, 6}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for _, wrong := range []string{"", "no log\n", `{"ms":{"conf":1}}`, line("1", `,"report":7`)} {
		if got, err := stageTimes(wrong); err == nil {
			t.Errorf("%q gives %v", wrong, got)
		}
	}
}

func TestAddParts(t *testing.T) {
	t.Parallel()
	if got := addParts(2, 10, []float64{1, 3}); !slices.Equal(got, []float64{2, 1, 3, 4}) {
		t.Errorf("got %v", got)
	}
	if got := addParts(2, 5, []float64{1, 3}); !slices.Equal(got, []float64{2, 1, 3, 0}) {
		t.Errorf("with nothing left: got %v", got)
	}
}

func TestRatePlot(t *testing.T) {
	t.Parallel()
	p := ratePlot([]string{"nftables", "iptables-nft"}, map[track]float64{
		{rules: "nftables"}: 23_000, {rules: "nftables", inbound: true}: 1,
		{rules: "nftables", exclusions: 100}: 22_000, {rules: "nftables", exclusions: 1000}: 21_000, {rules: "nftables", exclusions: many}: 20_000,
		{rules: "iptables-nft", exclusions: many}: 10_500,
	})
	if len(p.Lines) != 2 || !slices.Equal(p.Lines[0].Values, []float64{23, 22, 21, 20}) || !slices.Equal(p.Lines[1].Values, []float64{0, 0, 0, 10.5}) {
		t.Errorf("got %v", p.Lines)
	}
}

func TestWritePlots(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	l := &lab{plots: map[string]string{"a.svg": "<svg/>", "b.svg": "<svg></svg>"}}
	if err := l.writePlots(folder); err != nil {
		t.Fatal(err)
	}
	for name, want := range l.plots {
		if got, err := os.ReadFile(filepath.Join(folder, name)); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if err := l.writePlots(filepath.Join(folder, "missing")); err == nil {
		t.Error("a missing folder goes unnoticed")
	}
}
