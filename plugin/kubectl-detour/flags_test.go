package main

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestOwnFlagsAreSeparatedFromDetourctls(t *testing.T) {
	for _, tt := range []struct{ line, own, rest string }{
		{"pod/web", "", "pod/web"},
		{"-n shop pod/web --out --to 10.0.0.1:80", "-n shop", "pod/web --out --to 10.0.0.1:80"},
		{"pod/web --out -n shop --to 10.0.0.1:80 --context=a", "-n shop --context=a", "pod/web --out --to 10.0.0.1:80"},
		{"pod/web -nshop -o json --dry-run", "-nshop --dry-run", "pod/web -o json"},
		{"pod/web --to --namespace", "--namespace", "pod/web --to"},
		{"--dry-run pod/web", "--dry-run", "pod/web"},
		{"-n=shop pod/web", "-n=shop", "pod/web"},
		{"pod/web -- -n shop", "", "pod/web -n shop"},
		{"pod/web -", "", "pod/web -"},
		{"", "", ""},
	} {
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		new(options).register(flags)
		own, rest := split(flags, strings.Fields(tt.line))
		if strings.Join(own, " ") != tt.own || strings.Join(rest, " ") != tt.rest {
			t.Errorf("%q: got %q and %q, want %q and %q", tt.line, own, rest, tt.own, tt.rest)
		}
	}
}

func FuzzSplitLosesNothing(f *testing.F) {
	f.Add("-n shop pod/web --out --context=a")
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Fields(line)
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		new(options).register(flags)
		own, rest := split(flags, args)
		if n := len(own) + len(rest); n != len(args) && n != len(args)-1 { // without the first "--"
			t.Errorf("%q became %q and %q", args, own, rest)
		}
	})
}

func TestATargetComesFirst(t *testing.T) {
	v := verbs[0]
	target, args, err := question(v, []string{"pod/web", "-o", "json"})
	if err != nil || target != "pod/web" || strings.Join(args, " ") != "-o json" {
		t.Errorf("got %q, %q, %v", target, args, err)
	}
	for line, want := range map[string]string{
		"":              "verify whom? kubectl detour verify TARGET",
		"-o json pod/x": "name the target ahead of -o: kubectl detour verify TARGET -o json pod/x",
		"pod/x pod/y":   "one target at a time: pod/x or pod/y",
	} {
		_, _, err := question(v, strings.Fields(line))
		wantError(t, line, err, want)
	}
}
