package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/detour-cni/detour/pkg/nettest"
)

var programs = nettest.Programs("../../plugin/detour", "tool")

func TestMain(m *testing.M) {
	if isProxy() {
		os.Exit(runProxy())
	}
	os.Exit(nettest.Main(m))
}

// TestDemo runs the demo as it should be, and then with something missing, which it has to notice.
func TestDemo(t *testing.T) {
	t.Parallel()
	nettest.RequireNetns(t)
	for _, program := range []string{"go", "iptables"} {
		nettest.RequireProgram(t, program)
	}
	programs := programs(t)
	o := options{tools: programs, plugins: programs, manifests: "../../testdata/demo"}
	nettest.ReadByPrograms(t, o.manifests)
	for _, c := range []struct {
		name   string
		change func(*options)
		differ func(row) bool // nil for none
		but    []string       // meshes that are not tried
	}{
		{"as it should be", func(*options) {}, nil, nil},
		{"by nftables", func(o *options) { o.backend = "nftables" }, nil, nil},
		{"no detour in the chain", func(o *options) { o.withoutDetour = true }, func(r row) bool { return r.Want.Via != direct }, nil},
		// The rules send its own connections back to it, and so into a circle. Its answers to DNS queries get lost: that takes long.
		{"proxy of a wrong user", func(o *options) { o.wrongUser = true }, func(r row) bool { return r.Want.Via == outbound }, []string{"istio"}},
	} {
		for _, s := range scenarios {
			if slices.Contains(c.but, s.Mesh) {
				continue
			}
			t.Run(s.Mesh+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				o := o
				o.scenario = s
				c.change(&o)
				checkDemo(t, o, c.differ)
			})
		}
	}
	o.scenario = scenarios[0]
	t.Run("failed ADD", func(t *testing.T) {
		t.Parallel()
		o := o
		o.manifests = "no/such/folder"
		err := show(context.Background(), o, report{out: t.Output()})
		if err == nil || !strings.Contains(err.Error(), "no/such/folder") {
			t.Errorf("got %v, want an error about the manifests", err)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := show(ctx, o, report{out: t.Output()}); err == nil || !strings.HasPrefix(err.Error(), "interrupted") {
			t.Errorf("got %v, want an interruption", err)
		}
	})
}

// checkDemo wants exactly those rows to differ, in each of their families, and all others to be fine.
func checkDemo(t *testing.T, o options, differ func(row) bool) {
	t.Helper()
	var out bytes.Buffer
	err := show(context.Background(), o, report{out: &out})
	var want []string
	all := 0
	for _, r := range o.scenario.rows() {
		times := 2 // the families
		if r.To == localDNS {
			times = 1
		}
		all += times
		if differ != nil && differ(r) {
			want = append(want, slices.Repeat([]string{fmt.Sprintf("from %s: %s", r.From.Name, r.Name)}, times)...)
		}
	}
	switch {
	case want == nil && err != nil:
		t.Errorf("got error %v", err)
	case want != nil && !errors.Is(err, errDiffer):
		t.Errorf("got error %v, want %v", err, errDiffer)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		if rest, ok := strings.CutPrefix(line, "  ✗ "); ok {
			name, _, _ := strings.Cut(rest, ", ")
			got = append(got, name)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("differing connections:\ngot  %q\nwant %q", got, want)
	}
	if rows, marks := all-len(want), strings.Count(out.String(), "✓\n"); rows != marks {
		t.Errorf("got %d rows that are fine, want %d", marks, rows)
	}
	checkWidth(t, strings.ReplaceAll(out.String(), "../", ""))
	if t.Failed() {
		t.Logf("output:\n%s", &out)
	}
}

func checkWidth(t *testing.T, text string) {
	t.Helper()
	const most = 100
	for line := range strings.Lines(text) {
		if width := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); width > most {
			t.Errorf("%d columns, want at most %d: %s", width, most, line)
		}
	}
}
