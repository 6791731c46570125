package iptables

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/detour-cni/detour/pkg/backend/internal/driver"
	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/legacy"
	"github.com/detour-cni/detour/pkg/rules"
)

// Choice is what the net conf calls this backend. Which variant it takes depends on the host and on the namespace.
const Choice = "iptables"

// Backend is iptables of either variant.
type Backend struct{}

// Choice returns "iptables".
func (Backend) Choice() string { return Choice }

// Works starts the programs that ADD would start.
func (Backend) Works(ctx context.Context) error {
	p, err := Detect(ctx)
	if err != nil {
		return err
	}
	return p.Works()
}

// Prepare picks a variant. iptables has nothing for a gate.
func (Backend) Prepare(ctx context.Context, rs rules.Ruleset, families []rules.Family) (driver.Program, error) {
	if rs.Gated() {
		return nil, driver.Unsupported("outbound redirection that waits for the proxy's first packet needs backend nftables, but iptables is chosen")
	}
	p, err := Detect(ctx, families...)
	if err != nil {
		return nil, err
	}
	return p.Prepare(rs, families), nil
}

// PrepareEach prepares for each variant of which the host has programs, even if it lacks those of a family.
func (Backend) PrepareEach(ctx context.Context, rs rules.Ruleset, families []rules.Family) []driver.Program {
	var all []driver.Program
	for _, p := range Installed(ctx) {
		if !rs.Gated() {
			all = append(all, p.Prepare(rs, families))
		}
	}
	return all
}

// Prepare makes a ruleset ready for this variant.
func (p *Programs) Prepare(rs rules.Ruleset, families []rules.Family) driver.Program {
	return program{p, Compile(rs, families), rs, families}
}

// Fresh reports whether the namespace has no legacy tables.
func (Backend) Fresh() bool {
	for _, f := range rules.Families {
		if names, _ := legacy.Tables(f); len(names) > 0 {
			return false
		}
	}
	return true
}

// Variants are "iptables-nft" and "iptables-legacy".
func (Backend) Variants() []string { return []string{Nft.name(), Legacy.name()} }

// Broadest is made of all chains and rules of the rulesets.
func (Backend) Broadest(variant string, all []rules.Ruleset) driver.State {
	owned := Tables{}
	for _, rs := range all {
		owned = owned.join(Compile(rs, rules.Families))
	}
	return state(variant, owned)
}

// Remove removes what the payload lists. If the host no longer has the variant, or it can't be found out, Remove removes what it can
// without programs, and that is no error.
func (Backend) Remove(ctx context.Context, lock *os.File, s driver.State) error {
	if p := installed(ctx, s); p != nil {
		return p.Remove(ctx, lock, programmed(s))
	}
	for _, v := range variants {
		if v.name() != s.Variant {
			continue
		}
		if err := (&Programs{variant: v}).Remove(ctx, lock, programmed(s)); err != nil && !errors.Is(err, errNoProgram) {
			return err
		}
	}
	return nil
}

// Restore programs the payload again, if the host still has the variant.
func (Backend) Restore(ctx context.Context, lock *os.File, s driver.State, stale []driver.State) error {
	p := installed(ctx, s)
	if p == nil {
		return nil
	}
	want, old := programmed(s), joined(stale)
	if err := p.Apply(ctx, lock, want, old); err != nil {
		return err
	}
	return p.removeOthers(ctx, lock, old, want)
}

// Differences compares what iptables-save, or list, lists with the payload.
func (Backend) Differences(ctx context.Context, s driver.State, list driver.Lister) ([]string, error) {
	if list != nil {
		return differences(s, list)
	}
	p := installed(ctx, s)
	if p == nil {
		return nil, missing(s)
	}
	return p.Differences(ctx, programmed(s))
}

func differences(s driver.State, list driver.Lister) ([]string, error) {
	own, all := programmed(s), Tables{}
	for f := range own {
		text, err := list(s.Variant, f)
		if err == nil {
			all[f], err = iptext.ParseSave(text)
		}
		if err != nil {
			return nil, fmt.Errorf("list %s rules: %w", f, err)
		}
	}
	return compare(s.Variant == Nft.name(), own, all)
}

// Wanted compiles the ruleset.
func (Backend) Wanted(variant string, rs rules.Ruleset, families []rules.Family) driver.State {
	return state(variant, Compile(rs, families))
}

// Lines are those of iptables-save, each with its family and table.
func (Backend) Lines(s driver.State) []string {
	var lines []string
	all := programmed(s)
	for _, f := range rules.Families {
		for _, r := range all[f].Rules {
			lines = append(lines, fmt.Sprintf("%s %s: %s", f, r.Chain.Table, r.Line))
		}
	}
	return lines
}

// RuleCount counts lines with -A.
func (Backend) RuleCount(s driver.State) int {
	n := 0
	for _, text := range texts(s) {
		n += strings.Count(text, "\n-A ")
	}
	return n
}

// Gate says that there is none.
func (Backend) Gate(driver.State) (open, gated bool, err error) { return false, false, nil }

// program is a ruleset for the programs of one variant.
type program struct {
	*Programs
	want     Tables
	rules    rules.Ruleset
	families []rules.Family
}

func (p program) Variant() string { return p.Name() }

func (p program) State() driver.State { return state(p.Name(), p.want) }

// maxRules is how many rules a family may have before a backend with sets does better. Every connection is compared with
// iptables' rules one by one: 10,000 halve the connections per second, 1,000 take up to a tenth, and 100 nothing that can
// be measured (make bench).
const maxRules = 500

func (p program) Drawback() error {
	for f, save := range p.want {
		if len(save.Rules) > maxRules {
			return fmt.Errorf("%d %s rules slow each connection down", len(save.Rules), f)
		}
	}
	return p.loaded()
}

func (p program) Apply(ctx context.Context, lock *os.File, stale []driver.State) error {
	old := joined(stale)
	if err := p.Programs.Apply(ctx, lock, p.want, old); err != nil {
		return err
	}
	if err := p.removeOthers(ctx, lock, old, p.want); err != nil {
		return errors.Join(err, p.undo(ctx, lock, p.want))
	}
	return nil
}

func (p program) Text(explain bool) string {
	var b strings.Builder
	for _, f := range p.families {
		fmt.Fprintf(&b, "# %s: %stables-restore --noflush\n%s", f, prefix(f), iptext.Restore(p.rules, f, explain))
	}
	return b.String()
}

// removeOthers removes what is old of the families that Apply has not replaced.
func (p *Programs) removeOthers(ctx context.Context, lock *os.File, old, replaced Tables) error {
	maps.DeleteFunc(old, func(f rules.Family, _ iptext.Save) bool { _, ok := replaced[f]; return ok })
	if len(old) == 0 {
		return nil
	}
	return p.Remove(ctx, lock, old)
}

// installed returns the programs of a state's variant; nil if the host no longer has them.
func installed(ctx context.Context, s driver.State) *Programs {
	for _, p := range Installed(ctx) {
		if p.Name() == s.Variant {
			return p
		}
	}
	return nil
}

func missing(s driver.State) error {
	return fmt.Errorf("the pod was programmed with %s, which this node no longer has", s.Variant)
}

// state has as its payload an object: for each family its input for iptables-restore.
func state(variant string, t Tables) driver.State {
	text := map[rules.Family]string{}
	for f, save := range t {
		text[f] = save.Restore(iptext.Save{})
	}
	payload, err := json.Marshal(text)
	if err != nil {
		panic(err) // of a map of strings
	}
	return driver.State{Variant: variant, Payload: payload}
}

// programmed reads a payload. A family whose text makes no sense is left out.
func programmed(s driver.State) Tables {
	t := Tables{}
	for f, text := range texts(s) {
		if save, err := iptext.ParseSave(text); err == nil {
			t[f] = save
		}
	}
	return t
}

func texts(s driver.State) map[rules.Family]string {
	var all map[rules.Family]string
	_ = json.Unmarshal(s.Payload, &all) // a payload that makes no sense has none
	return all
}

// joined is what any of the states has.
func joined(states []driver.State) Tables {
	t := Tables{}
	for _, s := range states {
		t = t.join(programmed(s))
	}
	return t
}

// join is what is in either.
func (t Tables) join(other Tables) Tables {
	out := maps.Clone(t)
	for f, save := range other {
		out[f] = out[f].Join(save)
	}
	return out
}
