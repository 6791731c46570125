package iptables

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
)

// chain is a chain of one of iptables-nft's tables, of which each family has its own.
type chain struct {
	rules.Chain
	family rules.Family
}

// String is how messages name the chain.
func (c chain) String() string {
	return fmt.Sprintf("%s chain %s of table %s", c.family, c.Name, c.Table)
}

// handle identifies a rule to the kernel.
type handle struct {
	id   []byte
	into string // the chain that the rule jumps into; "" if it does something else
}

// listing is what iptables-nft's tables have at one moment: their chains, with the rules of some.
type listing struct {
	chains     map[chain][]handle
	generation []byte
}

// listChains lists the chains of iptables-nft's tables, and the rules of those that withRules picks.
func listChains(families []rules.Family, withRules func(chain) bool) (listing, error) {
	conn, err := nft.Open()
	if err != nil {
		return listing{}, fmt.Errorf("list chains: %w", err)
	}
	defer conn.Close()
	l := listing{chains: map[chain][]handle{}}
	err = conn.Ask(unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, func(f netlink.Fields) { l.generation = slices.Clone(f[unix.NFTA_GEN_ID]) })
	for _, family := range families {
		err = errors.Join(err, conn.Ask(nft.ProtocolOf(family), unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, func(f netlink.Fields) {
			c := chain{rules.Chain{Table: rules.Table(f.Text(unix.NFTA_CHAIN_TABLE)), Name: f.Text(unix.NFTA_CHAIN_NAME)}, family}
			if slices.Contains(rules.Tables, c.Table) {
				l.chains[c] = nil
			}
		}))
	}
	for c := range l.chains {
		if withRules(c) {
			err = errors.Join(err, conn.Rules(nft.ProtocolOf(c.family), string(c.Table), c.Name, func(f netlink.Fields) {
				l.chains[c] = append(l.chains[c], handle{slices.Clone(f[unix.NFTA_RULE_HANDLE]), nft.JumpOf(f[unix.NFTA_RULE_EXPRESSIONS])})
			}))
		}
	}
	if err != nil {
		return listing{}, fmt.Errorf("list chains: %w", err)
	}
	return l, nil
}

// remove deletes rules, and chains with all of their rules, in one transaction. It is netlink.ErrChanged if anybody has
// changed rules since they were listed.
func (l listing) remove(single map[chain][]handle, whole []chain) error {
	b := nft.NewBatch(l.generation)
	for c, handles := range single {
		for _, h := range handles {
			b.Delete("delete a rule of "+c.String(), nft.ProtocolOf(c.family), unix.NFT_MSG_DELRULE, append(c.ofRules(), netlink.Attribute{Kind: unix.NFTA_RULE_HANDLE, Data: h.id})...)
		}
	}
	for _, c := range whole { // ahead of all chains, as they may jump into each other
		b.Delete("delete the rules of "+c.String(), nft.ProtocolOf(c.family), unix.NFT_MSG_DELRULE, c.ofRules()...)
	}
	for _, c := range whole {
		b.Delete("delete "+c.String(), nft.ProtocolOf(c.family), unix.NFT_MSG_DELCHAIN,
			netlink.Text(unix.NFTA_CHAIN_TABLE, string(c.Table)), netlink.Text(unix.NFTA_CHAIN_NAME, c.Name))
	}
	if b.Empty() {
		return nil
	}
	conn, err := nft.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Commit(b.End())
}

// ofRules names the chain in a message about rules.
func (c chain) ofRules() []netlink.Attribute {
	return []netlink.Attribute{netlink.Text(unix.NFTA_RULE_TABLE, string(c.Table)), netlink.Text(unix.NFTA_RULE_CHAIN, c.Name)}
}
