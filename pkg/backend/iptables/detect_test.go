package iptables

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/rules"
)

// host makes a folder that stands for a host's PATH: each name is a link to a file of the name behind it.
func host(t *testing.T, links map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, target := range links {
		target = filepath.Join(dir, target)
		if err := os.WriteFile(target, []byte("#!/bin/sh\necho \"iptables v1.8.9 ($(basename $0 | grep -q wrapped-nft && echo nf_tables || echo legacy))\"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
}

// programs links all programs of a prefix's two families to one file.
func programs(prefix, target string, into map[string]string) map[string]string {
	for _, ip := range []string{"ip", "ip6"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			into[ip+prefix+suffix] = target
		}
	}
	return into
}

func TestDetection(t *testing.T) {
	nft := func() map[string]string { return programs("tables-nft", "xtables-nft-multi", map[string]string{}) }
	legacy := func() map[string]string {
		return programs("tables-legacy", "xtables-legacy-multi", map[string]string{})
	}
	both := func() map[string]string { return programs("tables-nft", "xtables-nft-multi", legacy()) }
	none := map[string]string{}
	onlyIPv4 := map[string]string{"iptables-nft-restore": "x", "iptables-nft-save": "x"}
	onlyIPv6 := map[string]string{"ip6tables-nft-restore": "x", "ip6tables-nft-save": "x"}

	for name, c := range map[string]struct {
		path     map[string]string
		tables   []string // the namespace's legacy tables
		noLegacy bool     // the kernel has no legacy tables
		noNft    error    // what the kernel says of nf_tables
		families []rules.Family
		want     Variant
	}{
		"both, nft is the default":                         {path: programs("tables", "xtables-nft-multi", both()), want: Nft},
		"both, legacy is the default":                      {path: programs("tables", "xtables-legacy-multi", both()), want: Legacy},
		"both, no default":                                 {path: both(), want: Nft},
		"the namespace has legacy tables":                  {path: programs("tables", "xtables-nft-multi", both()), tables: []string{"nat"}, want: Legacy},
		"legacy tables, but only nft is there":             {path: nft(), tables: []string{"nat"}, want: Nft},
		"legacy is the default, but the kernel has none":   {path: programs("tables", "xtables-legacy-multi", both()), noLegacy: true, want: Nft},
		"nft is the default, but the kernel has none":      {path: programs("tables", "xtables-nft-multi", both()), noNft: unix.EINVAL, want: Legacy},
		"nft is the default, and the kernel can't tell":    {path: programs("tables", "xtables-nft-multi", both()), noNft: unix.ENOMEM, want: Nft},
		"the kernel has loaded neither":                    {path: programs("tables", "xtables-nft-multi", both()), noNft: unix.EINVAL, noLegacy: true, want: Legacy},
		"only nft, although the kernel has none":           {path: nft(), noNft: unix.EINVAL, want: Nft},
		"only legacy, by its own names":                    {path: legacy(), want: Legacy},
		"only legacy, although the kernel has none loaded": {path: legacy(), noLegacy: true, want: Legacy},
		"only the default's names, nft":                    {path: programs("tables", "xtables-nft-multi", map[string]string{}), want: Nft},
		"only the default's names, legacy":                 {path: programs("tables", "xtables-multi", map[string]string{}), want: Legacy},
		"the default is a script around nft":               {path: programs("tables", "wrapped-nft", map[string]string{}), want: Legacy},
		"nothing":                                          {path: none},
		"no IPv6 programs, and it is not said what for":    {path: onlyIPv4, want: Nft},
		"no IPv6 programs, which nobody needs":             {path: onlyIPv4, families: rules.Families[:1], want: Nft},
		"no IPv6 programs, which are needed":               {path: onlyIPv4, families: rules.Families},
		"no IPv4 programs, which are needed":               {path: onlyIPv6, families: rules.Families[:1]},
		"no IPv4 programs, which nobody needs":             {path: onlyIPv6, families: rules.Families[1:], want: Nft},
		"the programs of one variant are incomplete":       {path: programs("tables-legacy", "xtables-legacy-multi", maps.Clone(onlyIPv4)), families: rules.Families, want: Legacy},
		"only iptables-restore":                            {path: map[string]string{"iptables-nft-restore": "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			host(t, c.path)
			legacyTables := func(rules.Family) ([]string, error) {
				if c.noLegacy {
					return nil, fs.ErrNotExist
				}
				return c.tables, nil
			}
			nftWorks := func() error {
				return c.noNft
			}
			b, err := detect(t.Context(), kernel{legacyTables, nftWorks}, c.families)
			if c.want == "" {
				if !errors.Is(err, ErrNone) {
					t.Errorf("got %v, %v, want ErrNone", b, err)
				}
				return
			}
			if err != nil || b.variant != c.want {
				t.Errorf("got %v, %v, want %s", b, err, c.want)
			}
		})
	}
}
