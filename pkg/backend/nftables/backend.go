package nftables

import (
	"context"
	"encoding/json"
	"os"
	"strings"

	"github.com/detour-cni/detour/pkg/backend/internal/driver"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
)

// Backend is nf_tables, spoken to over netlink.
type Backend struct{}

// Choice returns "nftables".
func (Backend) Choice() string { return Name }

// Works reports whether the kernel has nf_tables and lets this process use it.
func (Backend) Works(context.Context) error { return nft.Works() }

// Prepare can express every ruleset.
func (Backend) Prepare(_ context.Context, rs rules.Ruleset, families []rules.Family) (driver.Program, error) {
	return program{Compile(rs, families)}, nil
}

// Installed is the one variant, which every host has.
func (Backend) Installed(context.Context) []driver.Variant { return []driver.Variant{variant{}} }

type variant struct{}

func (variant) Prepare(rs rules.Ruleset, families []rules.Family) (driver.Program, error) {
	return program{Compile(rs, families)}, nil
}

// Fresh has nothing to look at outside of nf_tables.
func (Backend) Fresh() bool { return true }

// Variants are one.
func (Backend) Variants() []string { return []string{Name} }

// Broadest needs no payload: whatever was programmed is in one table.
func (Backend) Broadest(string, []rules.Ruleset) driver.State { return driver.State{Variant: Name} }

// Remove deletes the table.
func (Backend) Remove(context.Context, *os.File, driver.State) error { return Remove() }

// Restore has nothing to do: the table changes as a whole or not at all.
func (Backend) Restore(context.Context, *os.File, driver.State, []driver.State) error { return nil }

// Differences compares the kernel's table with the payload.
func (Backend) Differences(_ context.Context, s driver.State, _ driver.Lister) ([]string, error) {
	return Differences(programmed(s))
}

// Wanted compiles the ruleset.
func (Backend) Wanted(_ string, rs rules.Ruleset, families []rules.Family) driver.State {
	return program{Compile(rs, families)}.State()
}

// Lines are those with a comment, as each rule has one.
func (Backend) Lines(s driver.State) []string {
	var lines []string
	chain := ""
	for line := range strings.Lines(programmed(s)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "chain "); ok {
			chain = strings.TrimSuffix(name, " {")
		}
		if rule, _, ok := strings.Cut(line, ` comment "`); ok {
			lines = append(lines, chain+": "+rule)
		}
	}
	return lines
}

// RuleCount counts comments, as each rule has one.
func (Backend) RuleCount(s driver.State) int { return strings.Count(programmed(s), ` comment "`) }

// Gate reads the table's gate.
func (Backend) Gate(driver.State) (open, gated bool, err error) { return Gate() }

// program is a table that is to be programmed.
type program struct{ Table }

// Variant returns "nftables".
func (program) Variant() string { return Name }

// State has as its payload the table's text, as a string.
func (p program) State() driver.State {
	payload, err := json.Marshal(p.String())
	if err != nil {
		panic(err) // of a string
	}
	return driver.State{Variant: Name, Payload: payload}
}

// programmed reads a payload; one that makes no sense is no table.
func programmed(s driver.State) string {
	var text string
	_ = json.Unmarshal(s.Payload, &text) // Differences refuses what is left
	return text
}

func (p program) Drawback() error { return nft.Works() }

// Apply replaces the table, which is all that can be stale.
func (p program) Apply(context.Context, *os.File, []driver.State) error { return Apply(p.Table) }

// Text has comments in any case.
func (p program) Text(bool) string { return "# nft -f\n" + p.String() }
