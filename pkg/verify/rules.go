package verify

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/snapshot/xtables"
)

// rules compares the kernel with what was programmed.
func (c *checks) rules(ctx context.Context, record attachment.Record) {
	var different []string
	err := c.ns.Do(func() (err error) {
		if different, err = backend.DifferencesBy(ctx, record, listed); err == nil {
			c.Gate, err = backend.GateOf(record)
		}
		return err
	})
	if err != nil {
		c.unknown(RulesUnknown, "correct that, or "+recreate, "the kernel's rules can't be compared with what was programmed: %v", err)
	}
	for _, text := range different {
		name := nameOf(text)
		do := recreate + "; find out who changed it: it takes NET_ADMIN"
		if name == RuleAhead || name == NotTracked {
			do = "take that rule out, or narrow it; find out who added it"
		}
		c.finding(name, do, "%s", text)
	}
}

// listed lists tables as iptables-save does, without it: the image of detourctl has no programs.
func listed(variant string, f rules.Family) (string, error) {
	tables, err := xtables.Save(f)
	if err != nil || variant == "iptables-legacy" {
		return counters.ReplaceAllString(tables.Legacy, ""), err
	}
	existing, err := nft.Tables(nft.ProtocolOf(f))
	for _, table := range existing {
		if slices.Contains(rules.Tables, rules.Table(table)) && !slices.Contains(tables.Names, table) {
			return "", fmt.Errorf("table %s has something of nft's that iptables can't have: delete it with nft", table)
		}
	}
	return counters.ReplaceAllString(tables.Nft, ""), err
}

// counters are ahead of each rule.
var counters = regexp.MustCompile(`(?m)^\[\d+:\d+\] `)

// differences names the sentences of backend.Differences. They may quote rules of others, so the patterns are as narrow as can
// be.
var differences = []struct {
	name    Name
	pattern *regexp.Regexp
}{
	{RuleAhead, regexp.MustCompile(`: what it takes is not redirected$`)},
	{NotTracked, regexp.MustCompile(`: a connection that is not tracked is not redirected$`)},
	{Dormant, regexp.MustCompile(` is dormant: none of its rules is met$`)},
	{RuleAdded, regexp.MustCompile(`^(IPv[46] \w+: )?(rule \d+ of|chain|set) \S+ is not detour's|, which is not detour's$`)},
	{RuleMissing, regexp.MustCompile(`^(IPv[46] \w+: )?((rule \d+ of|chain|set) \S+|table inet detour) is missing`)},
	{RuleMissing, regexp.MustCompile(` is missing( from \w+)?$`)},
	{RuleChanged, regexp.MustCompile(`^(IPv[46] \w+: )?(rule \d+ of|chain|set) \S+ is `)},
	{RuleChanged, regexp.MustCompile(` should come first$| is (in \w+|there) \d+ times$`)},
}

func nameOf(text string) Name {
	for _, d := range differences {
		if d.pattern.MatchString(text) {
			return d.name
		}
	}
	return RulesDiffer
}

func firstOf(f rules.Family, addresses []netip.Addr) netip.Addr {
	return addresses[slices.IndexFunc(addresses, func(a netip.Addr) bool { return rules.Of(a) == f })]
}

// missing returns what is in a and not in b.
func missing[T comparable](a, b []T) []T {
	return slices.DeleteFunc(slices.Clone(a), func(v T) bool { return slices.Contains(b, v) })
}

func join(families []rules.Family) string {
	var names []string
	for _, f := range families {
		names = append(names, f.String())
	}
	return strings.Join(names, " and ")
}
