package trace

import (
	"fmt"
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// check refuses rulesets that a walk could get wrong: those with an unknown match or target, or with a rule that no kernel
// accepts.
func check(rs rules.Ruleset) error {
	for _, r := range rs.Rules {
		if err := checkRule(rs, r); err != nil {
			return fmt.Errorf("table %s chain %s: %w", r.Chain.Table, r.Chain.Name, err)
		}
	}
	return nil
}

func checkRule(rs rules.Ruleset, r rules.Rule) error {
	if !slices.Contains(rules.Tables, r.Chain.Table) {
		return fmt.Errorf("the table is not known")
	}
	if !r.Chain.Base() && !slices.Contains(rs.Chains, r.Chain) {
		return fmt.Errorf("the ruleset has rules for the chain but doesn't have the chain")
	}
	protocol := false // there has been a match on the protocol
	for _, m := range r.Matches {
		if _, err := (&state{}).matches(m); err != nil {
			return err
		}
		switch m.(type) {
		case rules.Protocol:
			protocol = true
		case rules.SrcPort, rules.DstPort, rules.DstPorts:
			if !protocol {
				return fmt.Errorf("%T needs a protocol ahead of it", m)
			}
		default:
		}
		if err := checkNot(m); err != nil {
			return err
		}
		if wrongSide(r.Chain, m) {
			return fmt.Errorf("this chain has nothing that %T could match", m)
		}
	}
	return checkTarget(rs, r, protocol)
}

// checkNot refuses what several lines of iptables can't express: "neither this nor that".
func checkNot(m rules.Match) error {
	switch m := m.(type) {
	case rules.Destination:
		for _, f := range rules.Families {
			if m.Not && len(rules.OfFamily(m.Prefixes, f)) > 1 {
				return fmt.Errorf("%T may exclude one range of a family", m)
			}
		}
	case rules.DstPorts:
		if m.Not && len(m.Ports) > rules.MaxMultiport {
			return fmt.Errorf("%T may exclude %d ports", m, rules.MaxMultiport)
		}
	default:
	}
	return nil
}

// wrongSide reports whether a base chain's hook lacks the interface that the match looks at. In other chains that are called
// from that hook, the match just fails.
func wrongSide(c rules.Chain, m rules.Match) bool {
	switch m.(type) {
	case rules.InInterface:
		return c.Name == rules.Output
	case rules.OutInterface:
		return c.Name == rules.Prerouting
	default:
		return false
	}
}

// known reports whether the walk knows the target's type. No switch here has a default, so that lint names what a new type lacks.
func known(t rules.Target) bool {
	switch t.(type) {
	case rules.Return, rules.Accept, rules.Drop, rules.Jump, rules.Redirect, rules.DNAT, rules.TProxy,
		rules.SetMark, rules.SaveMark, rules.RestoreMark, rules.Zone, rules.OpenGate:
		return true
	}
	return false
}

func checkTarget(rs rules.Ruleset, r rules.Rule, protocol bool) error {
	if !known(r.Target) {
		return fmt.Errorf("target %T is not known", r.Target)
	}
	only, ports := rules.Table(""), false // the one table with the target, and whether it needs a protocol
	switch t := r.Target.(type) {
	case rules.Jump:
		if to := (rules.Chain{Table: r.Chain.Table, Name: string(t)}); to.Base() || !slices.Contains(rs.Chains, to) {
			return fmt.Errorf("it jumps to %s, which is no chain of the ruleset", t)
		}
	case rules.Drop:
		if r.Chain.Table == rules.Nat {
			return fmt.Errorf("table nat can't drop")
		}
	case rules.Return, rules.Accept, rules.SetMark, rules.SaveMark, rules.RestoreMark, rules.OpenGate:
	case rules.Redirect:
		only, ports = rules.Nat, true
	case rules.DNAT:
		only, ports = rules.Nat, t.Port != 0
	case rules.TProxy:
		only, ports = rules.Mangle, true
	case rules.Zone:
		only = rules.Raw
	}
	if only != "" && r.Chain.Table != only {
		return fmt.Errorf("%T is a target of table %s only", r.Target, only)
	}
	if ports && !protocol {
		return fmt.Errorf("%T needs a match on the protocol", r.Target)
	}
	return nil
}
