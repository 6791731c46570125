package xtables

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// place is where a base chain of iptables' is.
type place struct {
	name, kind string
	hook       uint32
	priority   int32
}

// layout has iptables' tables, in iptables-nft-save's order, with their base chains in the order of the hooks.
var layout = []struct {
	table string
	base  []place
}{
	{"mangle", []place{
		{"PREROUTING", "filter", unix.NF_INET_PRE_ROUTING, -150},
		{"INPUT", "filter", unix.NF_INET_LOCAL_IN, -150},
		{"FORWARD", "filter", unix.NF_INET_FORWARD, -150},
		{"OUTPUT", "route", unix.NF_INET_LOCAL_OUT, -150},
		{"POSTROUTING", "filter", unix.NF_INET_POST_ROUTING, -150},
	}},
	{"security", []place{
		{"INPUT", "filter", unix.NF_INET_LOCAL_IN, 150},
		{"FORWARD", "filter", unix.NF_INET_FORWARD, 150},
		{"OUTPUT", "filter", unix.NF_INET_LOCAL_OUT, 150},
	}},
	{"raw", []place{
		{"PREROUTING", "filter", unix.NF_INET_PRE_ROUTING, -300},
		{"OUTPUT", "filter", unix.NF_INET_LOCAL_OUT, -300},
	}},
	{"filter", []place{
		{"INPUT", "filter", unix.NF_INET_LOCAL_IN, 0},
		{"FORWARD", "filter", unix.NF_INET_FORWARD, 0},
		{"OUTPUT", "filter", unix.NF_INET_LOCAL_OUT, 0},
	}},
	{"nat", []place{
		{"PREROUTING", "nat", unix.NF_INET_PRE_ROUTING, -100},
		{"INPUT", "nat", unix.NF_INET_LOCAL_IN, 100},
		{"OUTPUT", "nat", unix.NF_INET_LOCAL_OUT, -100},
		{"POSTROUTING", "nat", unix.NF_INET_POST_ROUTING, 100},
	}},
}

// nftTable is a table of nf_tables that has the name of one of iptables'.
type nftTable struct {
	name     string
	base     []place // what iptables has
	chains   []*nftChain
	byName   map[string]*nftChain
	foreign  bool // it is dormant, or has another base chain than iptables'
	native   bool // it has a rule that iptables has no words for
	extended bool // it has a rule that only iptables makes
}

// nftChain is a chain with the places of its rules in a text.
type nftChain struct {
	name, policy   string // which is "-" if it isn't a base chain
	packets, bytes uint64
	rules          [][2]int
}

// own reports whether the table is iptables', with all its rules. If iptables made a rule that nft has no words for, it is as
// well, even if it has others.
func (t *nftTable) own() bool { return !t.foreign && (t.extended || !t.native) }

// attempts bounds how often the tables are read again that somebody has changed meanwhile.
const attempts = 5

// saveNft prints the tables that are iptables', and returns their names. If somebody changes a table meanwhile, it begins again.
func saveNft(p *printer) ([]string, error) {
	c, err := nft.Open()
	if err == nil {
		defer c.Close()
		_, err = generation(c)
	}
	switch {
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return nil, nil // the kernel has no nf_tables
	case err != nil:
		return nil, err
	}
	for range attempts {
		tables, err := readNft(c, p)
		if errors.Is(err, netlink.ErrChanged) {
			continue
		}
		return p.nftTables(tables), err
	}
	return nil, netlink.ErrChanged
}

// readNft reads all tables in one generation. Their rules are in p's text.
func readNft(c nft.Conn, p *printer) ([]*nftTable, error) {
	p.text = p.text[:0]
	before, err := generation(c)
	if err != nil {
		return nil, err
	}
	tables, err := listTables(c, nft.ProtocolOf(p.family))
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		if t.foreign {
			continue
		}
		if err := t.read(c, p); err != nil {
			return nil, fmt.Errorf("list the rules of table %s: %w", t.name, err)
		}
	}
	after, err := generation(c)
	if err == nil && after != before {
		err = netlink.ErrChanged
	}
	return tables, err
}

func generation(c nft.Conn) (number uint32, err error) {
	err = c.Ask(unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, func(f netlink.Fields) {
		number = max(number, f.Number(unix.NFTA_GEN_ID))
	})
	return number, err
}

// listTables lists the tables that have names of iptables', in iptables' order, with their chains.
func listTables(c nft.Conn, family byte) ([]*nftTable, error) {
	found := map[string]*nftTable{}
	err := c.Ask(family, unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, func(f netlink.Fields) {
		name := f.Text(unix.NFTA_TABLE_NAME)
		dormant := f.Number(unix.NFTA_TABLE_FLAGS)&unix.NFT_TABLE_F_DORMANT != 0
		found[name] = &nftTable{name: name, byName: map[string]*nftChain{}, foreign: dormant}
	})
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	var tables []*nftTable
	for _, l := range layout {
		if t := found[l.table]; t != nil {
			t.base = l.base
			tables = append(tables, t)
		}
	}
	err = c.Ask(family, unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, func(f netlink.Fields) {
		if t := found[f.Text(unix.NFTA_CHAIN_TABLE)]; t != nil {
			t.add(f)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	return tables, nil
}

// add adds a chain.
func (t *nftTable) add(f netlink.Fields) {
	c := &nftChain{name: f.Text(unix.NFTA_CHAIN_NAME), policy: "-"}
	if f[unix.NFTA_CHAIN_HOOK] != nil {
		at := netlink.Parse(f[unix.NFTA_CHAIN_HOOK])
		priority := int32(at.Number(unix.NFTA_HOOK_PRIORITY))
		here := place{c.name, f.Text(unix.NFTA_CHAIN_TYPE), at.Number(unix.NFTA_HOOK_HOOKNUM), priority}
		t.foreign = t.foreign || !slices.Contains(t.base, here)
		c.policy = "ACCEPT"
		if f[unix.NFTA_CHAIN_POLICY] != nil && f.Number(unix.NFTA_CHAIN_POLICY) == nft.Drop {
			c.policy = "DROP"
		}
		counters := netlink.Parse(f[unix.NFTA_CHAIN_COUNTERS])
		c.packets, c.bytes = number64(counters[unix.NFTA_COUNTER_PACKETS]), number64(counters[unix.NFTA_COUNTER_BYTES])
	}
	t.chains = append(t.chains, c)
	t.byName[c.name] = c
}

// read prints the table's rules into p's text, in the kernel's order.
func (t *nftTable) read(c nft.Conn, p *printer) error {
	r := reader{family: p.family}
	return c.Ask(nft.ProtocolOf(p.family), unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, func(f netlink.Fields) {
		chain := t.byName[f.Text(unix.NFTA_RULE_CHAIN)]
		if chain == nil || f.Text(unix.NFTA_RULE_TABLE) != t.name { // older kernels list those of every table
			return
		}
		r.read(&f)
		t.native, t.extended = t.native || r.native, t.extended || r.extended
		from := len(p.text)
		p.rule(chain.name, &r.rule)
		if n := len(chain.rules); n > 0 && chain.rules[n-1][1] == from {
			chain.rules[n-1][1] = len(p.text)
		} else {
			chain.rules = append(chain.rules, [2]int{from, len(p.text)})
		}
	}, netlink.Text(unix.NFTA_RULE_TABLE, t.name))
}

// nftTables replaces the text by that of the tables. Base chains that a table lacks are those that nobody has used yet.
func (p *printer) nftTables(tables []*nftTable) (names []string) {
	rules := p.text
	p.text = make([]byte, 0, len(rules))
	for _, t := range tables {
		if !t.own() {
			continue
		}
		names = append(names, t.name)
		chains := t.sorted()
		p.say("*" + t.name + "\n")
		for _, c := range chains {
			p.chainHead(c.name, c.policy, c.packets, c.bytes)
		}
		for _, c := range chains {
			for _, r := range c.rules {
				p.text = append(p.text, rules[r[0]:r[1]]...)
			}
		}
		p.say("COMMIT\n")
	}
	return names
}

// sorted are the base chains by hook, and then the others by name.
func (t *nftTable) sorted() (all []*nftChain) {
	for _, b := range t.base {
		c := t.byName[b.name]
		if c == nil || c.policy == "-" {
			c = &nftChain{name: b.name, policy: "ACCEPT"}
		}
		all = append(all, c)
	}
	n := len(all)
	for _, c := range t.chains {
		if c.policy == "-" {
			all = append(all, c)
		}
	}
	slices.SortFunc(all[n:], func(a, b *nftChain) int { return strings.Compare(a.name, b.name) })
	return all
}
