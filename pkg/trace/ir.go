// Package trace walks a packet through the netfilter hooks of a network namespace as the kernel does, and names every rule that the
// packet meets. It is pure: it sends nothing and asks no kernel.
//
// The front-ends iptsave, nftjson and routes read what the programs iptables-save, nft and ip print into the types of this package:
// a Namespace has tables of chains of rules of statements. Walk follows the packet through them. Where chance decides, the walk goes
// every way and says how likely each is. Where a rule has something that no front-end knows, the walk goes both ways and says so.
package trace

import (
	"fmt"
)

// Namespace is what a network namespace has that decides over a packet.
type Namespace struct {
	Tables  []*Table // in the order in which they were created
	Routing Routing
}

// Family is the family of a table by nft's name: a table of iptables is "ip", one of ip6tables "ip6".
type Family string

// The families whose tables a walk visits. Those of the families bridge and arp are not walked.
const (
	IP     Family = "ip"
	IP6    Family = "ip6"
	Inet   Family = "inet"
	Netdev Family = "netdev"
)

// Table is a table with its chains and sets.
type Table struct {
	Family Family
	Name   string
	// Origin is the program that lists the table: "iptables-nft", "iptables-legacy" or "nft"; "iptables" if it is not known which.
	Origin string
	// Dormant tables are not registered with the kernel's hooks.
	Dormant bool
	Chains  []*Chain

	byName map[string]*Chain
}

// Chain returns nil if the table has no chain of that name.
func (t *Table) Chain(name string) *Chain {
	if len(t.byName) != len(t.Chains) {
		t.byName = make(map[string]*Chain, len(t.Chains))
		for _, c := range t.Chains {
			t.byName[c.Name] = c
		}
	}
	return t.byName[name]
}

// Chain is a chain of a table.
type Chain struct {
	Table *Table
	Name  string
	// Base is nil for a chain that other chains call.
	Base *Base
	// Rules returns the chain's rules in order. Front-ends read them at the first call. A rule that can't be read is one Unknown
	// statement, not an error: the error is that of a live source, which did not yield the chain. Nil means that the chain is empty.
	Rules func() ([]*Rule, error)
}

// Base is what makes a chain a base chain.
type Base struct {
	Hook     Hook
	Type     ChainType
	Priority int
	Policy   Verdict // Accept or Drop
	Device   string  // of hook Ingress or Egress
}

// Hook is a netfilter hook by nft's name.
type Hook string

// The hooks, in the order in which a forwarded packet meets them.
const (
	Ingress     Hook = "ingress"
	Prerouting  Hook = "prerouting"
	Input       Hook = "input"
	Forward     Hook = "forward"
	Output      Hook = "output"
	Postrouting Hook = "postrouting"
	Egress      Hook = "egress"
)

// ChainType is the type of a base chain by nft's name. iptables' table mangle has a chain of type route in OUTPUT, its table nat has
// chains of type nat, and all others are of type filter.
type ChainType string

// The types of base chains.
const (
	FilterChain ChainType = "filter"
	NATChain    ChainType = "nat"
	RouteChain  ChainType = "route"
)

// The priorities of iptables' tables, and of connection tracking (enum nf_ip_hook_priorities).
const (
	PriorityRaw       = -300
	PriorityConntrack = -200
	PriorityMangle    = -150
	PriorityDNAT      = -100 // table nat in PREROUTING and OUTPUT
	PriorityFilter    = 0
	PrioritySecurity  = 50
	PrioritySNAT      = 100 // table nat in INPUT and POSTROUTING
)

// Rule is one rule: its statements happen in order until a match fails or a verdict is reached.
type Rule struct {
	Chain *Chain
	// Number is the rule's place in its chain, from 1.
	Number int
	// Handle is nf_tables' handle; 0 if it has none or it is not known.
	Handle uint64
	// Text is the rule as its program prints it, without "-A CHAIN", and without comment if Comment has it.
	Text       string
	Comment    string
	Statements []Statement
}

// String names the rule: "table ip nat chain OUTPUT rule 1".
func (r *Rule) String() string {
	return fmt.Sprintf("table %s %s chain %s rule %d", r.Chain.Table.Family, r.Chain.Table.Name, r.Chain.Name, r.Number)
}
