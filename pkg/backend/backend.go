// Package backend programs a pod's redirection, rules and routing alike, in one of the ways that a node offers, and
// compares and removes it by its attachment record. It works in the network namespace of the calling thread, which the
// caller has entered and locked.
package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend/iptables"
	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/backend/route"
	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/rules"
)

// Choices are what a backend may be chosen by; the first is the default.
var Choices = []string{Auto, IPTables, NFTables}

// The choices. Auto takes iptables where it works, as the meshes' own guides look for the rules there, and nftables
// elsewhere and for what iptables can't do, or not well.
const (
	Auto     = "auto"
	IPTables = "iptables"
	NFTables = "nftables"
)

// Program is a ruleset made ready for one backend.
type Program struct {
	choice   string
	way      way
	rules    rules.Ruleset
	families []rules.Family
}

// way is one backend with what it is to program.
type way interface {
	Name() string
	// keep notes in the record what apply programs.
	keep(r *attachment.Record)
	// apply programs all of it, or nothing. Of what is stale it replaces what the same backend programmed for the same
	// families.
	apply(ctx context.Context, lock *os.File, stale []attachment.Record) error
}

// Prepare makes a ruleset ready for the backend that is chosen, and that the namespace and the ruleset let be chosen. It
// changes nothing.
func Prepare(ctx context.Context, choice string, rs rules.Ruleset, families []rules.Family) (*Program, error) {
	w, err := choose(ctx, choice, rs, families)
	if err != nil {
		return nil, err
	}
	return &Program{choice, w, rs, families}, nil
}

// Instead returns what programs the same by nftables, after a program that Auto has chosen failed; nil if there is no such
// thing. Whether iptables works is known only when it has.
func (p *Program) Instead() *Program {
	if p.choice != Auto || p.way.Name() == nftables.Name || nftables.Works() != nil {
		return nil
	}
	return &Program{NFTables, byNFTables{nftables.Compile(p.rules, p.families)}, p.rules, p.families}
}

// Keep notes in the record what Apply will program.
func (p *Program) Keep(r *attachment.Record) {
	r.Backend, r.Families, r.Setup = p.way.Name(), p.families, p.rules.Setup
	r.Rules, r.Table = nil, ""
	p.way.keep(r)
}

// Apply programs routes and rules, and all of both or nothing. What the records in stale say may be in the namespace is gone
// then, but after a failure some of it may be there. The result is the same however often it runs. lock is the namespace's
// lock, which the programs that it starts inherit.
func (p *Program) Apply(ctx context.Context, lock *os.File, stale ...attachment.Record) error {
	stale = traces(stale)
	if err := route.Apply(p.rules.Setup, p.families); err != nil {
		return err
	}
	if err := p.way.apply(ctx, lock, stale); err != nil {
		return errors.Join(err, route.Remove(p.rules.Setup, p.families))
	}
	err := p.clear(ctx, lock, stale)
	if err == nil {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var r attachment.Record
	p.Keep(&r)
	return errors.Join(err, Remove(undo, lock, r))
}

// undoTimeout bounds the removal of what a failed Apply has done; the caller's deadline may have passed by then.
const undoTimeout = 5 * time.Second

// Remove takes out what the records say may be in the namespace. A record that names no backend is looked for with each that
// the node has. What is not there is no error.
func Remove(ctx context.Context, lock *os.File, records ...attachment.Record) error {
	nothing := &Program{way: standing("")}
	return nothing.clear(ctx, lock, traces(records))
}

// Restore sees to it that the namespace holds what the record says and nothing of stale, after something else was tried.
// Only what iptables programmed has to be programmed again for that: nftables' table changes as a whole or not at all.
func Restore(ctx context.Context, lock *os.File, r attachment.Record, stale ...attachment.Record) error {
	stale = traces(stale)
	p := &Program{way: standing(r.Backend), rules: rules.Ruleset{Setup: r.Setup}, families: r.Families}
	for _, b := range iptables.Installed(ctx) {
		if b.Name() == r.Backend {
			p.way = byIPTables{b, owned(r)}
		}
	}
	if err := route.Apply(r.Setup, r.Families); err != nil {
		return err
	}
	if err := p.way.apply(ctx, lock, stale); err != nil {
		return err
	}
	return p.clear(ctx, lock, stale)
}

// Fresh reports whether the namespace has no rules, and so none of detour's.
func Fresh() bool {
	fresh, err := nftables.Fresh()
	return (err != nil || fresh) && iptables.LegacyFresh() // what can't be listed can't be there either
}

func traces(records []attachment.Record) []attachment.Record {
	var out []attachment.Record
	for _, r := range records {
		out = append(out, r.Traces()...)
	}
	return out
}

// Differences says, one sentence each, where the kernel differs from what the record says was programmed.
func Differences(ctx context.Context, r attachment.Record) ([]string, error) {
	found, err := route.Differences(r.Setup, r.Families)
	if err != nil {
		return nil, err
	}
	if r.Backend == nftables.Name {
		more, err := nftables.Differences(r.Table)
		return append(found, more...), err
	}
	for _, b := range iptables.Installed(ctx) {
		if b.Name() == r.Backend {
			more, err := b.Differences(ctx, owned(r))
			return append(found, more...), err
		}
	}
	return nil, fmt.Errorf("the pod was programmed with %s, which this node has no more", r.Backend)
}

// owned is what a record says that iptables programmed; nothing of a record that was never written.
func owned(r attachment.Record) iptables.Owned {
	own := iptables.Owned{}
	for f, text := range r.Rules {
		if s, err := iptext.ParseSave(text); err == nil {
			own[f] = s
		}
	}
	return own
}

// RuleCount counts what the record says was programmed, in the lines of the backend's own language.
func RuleCount(r attachment.Record) int {
	n := strings.Count(r.Table, " comment \"")
	for _, text := range r.Rules {
		n += strings.Count(text, "\n-A ")
	}
	return n
}

// Works fails if a program could not be programmed now, as far as is to be known without programming one.
func Works(ctx context.Context, choice string) error {
	w, err := choose(ctx, choice, rules.Ruleset{}, nil)
	if err != nil {
		return err
	}
	b, ok := w.(byIPTables)
	if !ok {
		return nftables.Works()
	}
	if err = b.Works(); choice == Auto && nftables.Works() == nil {
		return nil // see Instead
	}
	return err
}

// Gate says whether redirection that begins with the proxy's first packet has begun; it is empty if redirection doesn't wait.
type Gate string

// The gates.
const (
	Waits Gate = "waits for the proxy's first packet"
	Began Gate = "has begun with the proxy's first packet"
)

// GateOf reads the kernel's state of what the record says was programmed.
func GateOf(r attachment.Record) (Gate, error) {
	if r.Backend != nftables.Name {
		return "", nil
	}
	armed, gated, err := nftables.Gate()
	switch {
	case err != nil || !gated:
		return "", err
	case armed:
		return Began, nil
	}
	return Waits, nil
}
