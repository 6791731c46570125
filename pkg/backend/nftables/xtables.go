package nftables

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/rules"
)

// Chain is a chain of one of iptables-nft's tables, of which each family has its own.
type Chain struct {
	Family rules.Family
	rules.Chain
}

// Rule is by what the kernel knows a rule.
type Rule struct {
	handle []byte
	// Into is the chain that it jumps into, "" if it does something else.
	Into string
}

// Chains are those of iptables-nft's tables at one moment, with the rules of some.
type Chains struct {
	Rules      map[Chain][]Rule
	generation []byte
}

// ErrChanged says that somebody else has changed the namespace's rules meanwhile.
var ErrChanged = errors.New("the rules were changed meanwhile")

// ListChains lists the chains of iptables-nft's tables, and the rules of those that withRules picks.
func ListChains(families []rules.Family, withRules func(Chain) bool) (Chains, error) {
	s, err := open()
	if err != nil {
		return Chains{}, fmt.Errorf("list chains: %w", err)
	}
	defer s.close()
	list, err := s.chains(families, withRules)
	if err != nil {
		return Chains{}, fmt.Errorf("list chains: %w", err)
	}
	return list, nil
}

func (s *socket) chains(families []rules.Family, withRules func(Chain) bool) (Chains, error) {
	list := Chains{Rules: map[Chain][]Rule{}}
	err := s.ask(unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, func(f fields) { list.generation = slices.Clone(f[unix.NFTA_GEN_ID]) })
	for _, family := range families {
		err = errors.Join(err, s.askFor(protocolOf(family), unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, func(f fields) {
			c := Chain{family, rules.Chain{Table: rules.Table(f.text(unix.NFTA_CHAIN_TABLE)), Name: f.text(unix.NFTA_CHAIN_NAME)}}
			if slices.Contains(rules.Tables, c.Table) {
				list.Rules[c] = nil
			}
		}))
	}
	for c := range list.Rules {
		if withRules(c) {
			err = errors.Join(err, s.rulesOf(c, &list))
		}
	}
	return list, err
}

func (s *socket) rulesOf(c Chain, into *Chains) error {
	table, name := string(c.Table), c.Name
	return s.askFor(protocolOf(c.Family), unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, func(f fields) {
		if f.text(unix.NFTA_RULE_TABLE) == table && f.text(unix.NFTA_RULE_CHAIN) == name { // older kernels list those of every chain
			into.Rules[c] = append(into.Rules[c], Rule{slices.Clone(f[unix.NFTA_RULE_HANDLE]), jumpOf(f[unix.NFTA_RULE_EXPRESSIONS])})
		}
	}, text(unix.NFTA_RULE_TABLE, table), text(unix.NFTA_RULE_CHAIN, name))
}

// jumpOf is the chain that the expressions of a rule jump or go to.
func jumpOf(code []byte) (into string) {
	for a := range decode(code) {
		e := parse(a.data)
		data := parse(e[unix.NFTA_EXPR_DATA])
		value := parse(data[unix.NFTA_IMMEDIATE_DATA])
		if e.text(unix.NFTA_EXPR_NAME) == "immediate" {
			verdict := parse(value[unix.NFTA_DATA_VERDICT])
			into = verdict.text(unix.NFTA_VERDICT_CHAIN)
		}
	}
	return into
}

// Delete deletes rules, and chains with all of theirs, in one transaction. It is ErrChanged if what was listed is no longer
// what there is.
func (l Chains) Delete(single map[Chain][]Rule, whole []Chain) error {
	b := &batch{deletes: true}
	b.border(unix.NFNL_MSG_BATCH_BEGIN, attribute{unix.NFNL_BATCH_GENID, l.generation})
	for c, list := range single {
		for _, r := range list {
			b.addFor(protocolOf(c.Family), message{verb: "delete a rule of " + c.String()}, unix.NFT_MSG_DELRULE, 0,
				text(unix.NFTA_RULE_TABLE, string(c.Table)), text(unix.NFTA_RULE_CHAIN, c.Name), attribute{unix.NFTA_RULE_HANDLE, r.handle})
		}
	}
	for _, c := range whole { // they may jump into each other
		b.addFor(protocolOf(c.Family), message{verb: "delete the rules of " + c.String()}, unix.NFT_MSG_DELRULE, 0,
			text(unix.NFTA_RULE_TABLE, string(c.Table)), text(unix.NFTA_RULE_CHAIN, c.Name))
	}
	for _, c := range whole {
		b.addFor(protocolOf(c.Family), message{verb: "delete " + c.String()}, unix.NFT_MSG_DELCHAIN, 0,
			text(unix.NFTA_CHAIN_TABLE, string(c.Table)), text(unix.NFTA_CHAIN_NAME, c.Name))
	}
	if len(b.messages) == 1 {
		return nil
	}
	b.end()
	s, err := open()
	if err != nil {
		return err
	}
	defer s.close()
	if err = s.commit(b); errors.Is(err, unix.ERESTART) {
		return ErrChanged
	}
	return err
}

// String is how messages name the chain.
func (c Chain) String() string {
	return fmt.Sprintf("%s chain %s of table %s", c.Family, c.Name, c.Table)
}
