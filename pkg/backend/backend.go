// Package backend programs a pod's redirection, rules and routing alike, with one of the backends that a node offers. It
// compares and removes what was programmed by its attachment record. It works in the network namespace of the calling thread,
// which the caller has entered and locked.
package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend/internal/driver"
	"github.com/detour-cni/detour/pkg/backend/iptables"
	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/backend/route"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
)

// backends are all that there are, in the order in which Auto prefers them: iptables first, because the meshes' own guides look
// for the rules there.
var backends = []driver.Backend{iptables.Backend{}, nftables.Backend{}}

// Program is a ruleset made ready for one backend.
type Program struct {
	backend  driver.Backend
	prepared driver.Program
	rules    rules.Ruleset
	families []rules.Family
	others   []driver.Backend // for Fallback
}

// Choice is the backend's name in the net conf.
func (p *Program) Choice() string { return p.backend.Choice() }

// Variant is what records and logs call the backend, such as iptables-nft.
func (p *Program) Variant() string { return p.prepared.Variant() }

// Drawback says why Auto prefers another backend; nil if it does not.
func (p *Program) Drawback() error { return p.prepared.Drawback() }

// Text prints the rules as input for the backend's own tool. If explain is true, it says why each rule is there.
func (p *Program) Text(explain bool) string { return p.prepared.Text(explain) }

// Keep notes in the record what Apply will program.
func (p *Program) Keep(r *attachment.Record) {
	s := p.prepared.State()
	r.Backend, r.Payload, r.Families, r.Setup = s.Variant, s.Payload, p.families, p.rules.Setup
}

// Apply programs routes and rules: all of both or, on an error, nothing. It removes what the records in stale say, but after
// a failure some of that may be left. The result is the same however often it runs. The started programs inherit lock, the
// namespace's lock.
func (p *Program) Apply(ctx context.Context, lock *os.File, stale ...attachment.Record) error {
	if err := ctx.Err(); err != nil { // not every backend asks
		return err
	}
	stale = traces(stale)
	if err := route.Apply(p.rules.Setup, p.families); err != nil {
		return err
	}
	own := attachment.Record{Backend: p.prepared.Variant(), Families: p.families, Setup: p.rules.Setup}
	if err := p.prepared.Apply(ctx, lock, statesOf(own.Backend, stale)); err != nil {
		return errors.Join(err, route.Remove(own.Setup, own.Families))
	}
	err := clearStale(ctx, lock, stale, own)
	if err == nil {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	p.Keep(&own)
	return errors.Join(err, Remove(undo, lock, own))
}

// undoTimeout bounds the removal of what a failed Apply has done. The caller's deadline may have passed by then.
const undoTimeout = 5 * time.Second

// Remove removes what the records say may be in the namespace. What doesn't exist is no error.
func Remove(ctx context.Context, lock *os.File, records ...attachment.Record) error {
	return clearStale(ctx, lock, traces(records), attachment.Record{})
}

// Restore makes the namespace hold what the record says and nothing of stale, after something else was tried.
func Restore(ctx context.Context, lock *os.File, r attachment.Record, stale ...attachment.Record) error {
	stale = traces(stale)
	if err := route.Apply(r.Setup, r.Families); err != nil {
		return err
	}
	if b := find(r.Backend); b != nil {
		if err := b.Restore(ctx, lock, stateOf(r), statesOf(r.Backend, stale)); err != nil {
			return err
		}
	}
	return clearStale(ctx, lock, stale, r)
}

// Fresh reports whether the namespace certainly has no rules, and so none of detour's.
func Fresh() bool {
	tables, _ := nft.Tables(unix.NFPROTO_UNSPEC) // there are none where they can't be listed
	return len(tables) == 0 && !slices.ContainsFunc(backends, func(b driver.Backend) bool { return !b.Fresh() })
}

// Broadest is what may be in a namespace without a record: whatever any backend may have programmed of these rulesets.
func Broadest(all []rules.Ruleset) []attachment.Record {
	routes := attachment.Record{Families: rules.Families}
	for _, rs := range all {
		routes.Setup = routes.Setup.Join(rs.Setup)
	}
	rest := forEach(func(b driver.Backend, variant string) driver.State { return b.Broadest(variant, all) })
	return append(rest, routes)
}

// Lister lists a family's tables of a variant of iptables, as its iptables-save does.
type Lister = driver.Lister

// Differences says, one sentence each, where the kernel differs from what the record says was programmed. For iptables, it starts
// iptables-save.
func Differences(ctx context.Context, r attachment.Record) ([]string, error) {
	return DifferencesBy(ctx, r, nil)
}

// DifferencesBy is Differences with list instead of iptables-save: it needs no program. list is called with the variant as the
// record has it, in this namespace.
func DifferencesBy(ctx context.Context, r attachment.Record, list Lister) ([]string, error) {
	found, err := route.Differences(r.Setup, r.Families)
	if err != nil {
		return nil, err
	}
	b := find(r.Backend)
	if b == nil {
		return nil, errUnknown(r)
	}
	more, err := b.Differences(ctx, stateOf(r), list)
	return append(found, more...), err
}

// Knows reports whether this version of detour has the backends of all that the record says the namespace may hold.
func Knows(r attachment.Record) bool {
	return !slices.ContainsFunc(r.Traces(), func(t attachment.Record) bool { return t.Backend != "" && find(t.Backend) == nil })
}

func errUnknown(r attachment.Record) error {
	return fmt.Errorf("the pod was programmed with %s, which this version of detour doesn't know", r.Backend)
}

// Lines are what the record says was programmed, rule by rule in the backend's own language; iptables' begin with family and
// table.
func Lines(r attachment.Record) []string {
	if b := find(r.Backend); b != nil {
		return b.Lines(stateOf(r))
	}
	return nil
}

// Changes says, one sentence each, where the record's rules differ from those that its backend would program now. Addresses and
// routes follow from the rules.
func Changes(r attachment.Record, rs rules.Ruleset, families []rules.Family) ([]string, error) {
	b := find(r.Backend)
	if b == nil {
		return nil, errUnknown(r)
	}
	was, now := b.Lines(stateOf(r)), b.Lines(b.Wanted(r.Backend, rs, families))
	var found []string
	for _, line := range without(now, was) {
		found = append(found, line+" would be programmed now")
	}
	for _, line := range without(was, now) {
		found = append(found, line+" would not be programmed now")
	}
	return found, nil
}

// without returns those lines of a that b does not have, or not as often.
func without(a, b []string) []string {
	count := map[string]int{}
	for _, line := range b {
		count[line]++
	}
	return slices.DeleteFunc(slices.Clone(a), func(line string) bool {
		count[line]--
		return count[line] >= 0
	})
}

// RuleCount counts the rules that the record says were programmed, in the backend's own language.
func RuleCount(r attachment.Record) int {
	if b := find(r.Backend); b != nil {
		return b.RuleCount(stateOf(r))
	}
	return 0
}

// Gate says whether outbound redirection has started; it is empty if redirection doesn't wait.
type Gate string

// The gates.
const (
	Waits Gate = "outbound redirection waits for the proxy's first packet"
	Began Gate = "outbound redirection has started"
)

// GateOf reads the kernel's state of what the record says was programmed.
func GateOf(r attachment.Record) (Gate, error) {
	b := find(r.Backend)
	if b == nil {
		return "", nil
	}
	open, gated, err := b.Gate(stateOf(r))
	switch {
	case err != nil || !gated:
		return "", err
	case open:
		return Began, nil
	}
	return Waits, nil
}
