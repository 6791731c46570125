// Package driver says what a backend must be able to do. Like database/sql's drivers, backends don't know the package that
// lists them.
package driver

import (
	"context"
	"encoding/json"
	"os"

	"github.com/detour-cni/detour/pkg/rules"
)

// Backend programs rules in the network namespace of the calling thread, which the caller has entered and locked. lock is
// the namespace's lock, for the programs that a backend starts.
type Backend interface {
	// Choice is the backend's name in the net conf.
	Choice() string
	// Works fails if the backend can't program, as far as can be known without programming. It may start programs.
	Works(ctx context.Context) error
	// Prepare makes a ruleset ready for the namespace. It changes nothing. It is Unsupported if no namespace can have it.
	Prepare(ctx context.Context, rs rules.Ruleset, families []rules.Family) (Program, error)
	// Installed lists the variants that the host has, whichever of them Prepare would pick.
	Installed(ctx context.Context) []Variant
	// Fresh reports whether the namespace certainly has nothing that the backend programmed outside of nf_tables. Whether there
	// are tables in nf_tables is asked once for all backends.
	Fresh() bool
	// Variants are the names that the backend may have in a State. Only one backend has each.
	Variants() []string
	// Broadest is what a variant may have programmed of any of the rulesets, for both families.
	Broadest(variant string, all []rules.Ruleset) State
	// Remove removes what was programmed. It is no error if that, or the variant, is gone.
	Remove(ctx context.Context, lock *os.File, s State) error
	// Restore programs again what something else has replaced. It removes what is stale of the same variant. It is no error if
	// the variant is gone.
	Restore(ctx context.Context, lock *os.File, s State, stale []State) error
	// Differences says, one sentence each, where the kernel differs from what was programmed. list lists what the kernel has if
	// that takes a program otherwise; nil stands for the program.
	Differences(ctx context.Context, s State, list Lister) ([]string, error)
	// Wanted is what Prepare would make of a ruleset with a variant, which the host need not have.
	Wanted(variant string, rs rules.Ruleset, families []rules.Family) State
	// Lines are what was programmed, rule by rule in the backend's own language and without comments.
	Lines(s State) []string
	// RuleCount counts what was programmed, in rules of the backend's own language.
	RuleCount(s State) int
	// Gate reports whether what was programmed has a gate, and whether the gate is open.
	Gate(s State) (open, gated bool, err error)
}

// Lister lists a family's tables of a variant of iptables, as its iptables-save does.
type Lister func(variant string, f rules.Family) (string, error)

// State is what an attachment record keeps about what a backend programmed.
type State struct {
	Variant string // what records and logs call the backend
	// Payload is read by the backend only. A backend must go on to read the payloads that its earlier versions wrote.
	Payload json.RawMessage
}

// Variant makes rulesets ready for one variant.
type Variant interface {
	// Prepare changes nothing. It is Unsupported if the variant can't express the ruleset.
	Prepare(rs rules.Ruleset, families []rules.Family) (Program, error)
}

// Program is a ruleset made ready for one variant of a backend.
type Program interface {
	// Variant is what records and logs call the backend.
	Variant() string
	// State is what the record keeps.
	State() State
	// Drawback says why another backend would do better; nil if nothing does.
	Drawback() error
	// Apply programs everything or, on an error, nothing. It removes what is stale of the same variant. The result is the same
	// however often it runs.
	Apply(ctx context.Context, lock *os.File, stale []State) error
	// Text prints the program as input for the backend's own tool. If explain is true and the language has comments, they say
	// why each rule is there.
	Text(explain bool) string
}

// Unsupported is the error for a ruleset that a backend can't express.
type Unsupported string

func (u Unsupported) Error() string { return string(u) }
