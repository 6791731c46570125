package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/rules"
)

// Dormant says, one sentence each, which of our own tables are switched off.
func Dormant(own func(family Family, table string) bool) ([]string, error) {
	var found []string
	err := eachFamily(func(s *socket, f Family) error {
		return s.askFor(f.number(), unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, func(t fields) {
			if name := t.text(unix.NFTA_TABLE_NAME); own(f, name) && t.number(unix.NFTA_TABLE_FLAGS)&unix.NFT_TABLE_F_DORMANT != 0 {
				found = append(found, fmt.Sprintf("table %s %s is dormant: none of its rules is met", f, name))
			}
		})
	})
	return found, err
}

// Foreign says, one sentence each, what in others' tables keeps TCP connections of these families, of an interface at least,
// from being redirected, whoever redirects: a rule that has them not tracked, or one that translates their address in a nat
// chain that comes no later than detour's. The first that translates a connection wins, and which of two chains of one
// priority is first the kernel doesn't tell. What matches less is somebody's wish and not said. Nor is where others accept,
// which ends their own chain alone, nor where they drop, which lets nothing past the proxy.
func Foreign(families []rules.Family, own func(family Family, table string) bool) ([]string, error) {
	var found []string
	err := eachFamily(func(s *socket, f Family) error {
		chains, err := s.foreign(f, families, own)
		for _, c := range chains {
			if by := c.endedBy(chains, nil); by != nil {
				found = append(found, fmt.Sprintf("chain %s of table %s %s has `%s`: what it takes is not redirected", c.name, f, c.table, strings.Join(by, "`, and `")))
			}
		}
		return err
	})
	return found, err
}

// Family is a family of tables by nft's name.
type Family string

// The families whose tables see IP packets.
const (
	Inet Family = "inet"
	IP   Family = "ip"
	IP6  Family = "ip6"
)

func (f Family) number() byte {
	return byte(numberOf([]named{{"inet", unix.NFPROTO_INET}, {"ip", unix.NFPROTO_IPV4}, {"ip6", unix.NFPROTO_IPV6}}, string(f)))
}

// eachFamily asks about every family's tables; a kernel without nf_tables has none.
func eachFamily(ask func(*socket, Family) error) error {
	if Works() != nil {
		return nil
	}
	s, err := open()
	if err != nil {
		return err
	}
	defer s.close()
	for _, f := range []Family{Inet, IP, IP6} {
		if err := ask(s, f); err != nil {
			return fmt.Errorf("list tables of family %s: %w", f, err)
		}
	}
	return nil
}

func (s *socket) foreign(f Family, families []rules.Family, own func(Family, string) bool) ([]foreignChain, error) {
	if f == IP && !slices.Contains(families, rules.IPv4) || f == IP6 && !slices.Contains(families, rules.IPv6) {
		return nil, nil
	}
	var chains []foreignChain
	err := s.askFor(f.number(), unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, func(a fields) {
		if c := newForeignChain(a); !own(f, c.table) {
			chains = append(chains, c)
		}
	})
	for i, c := range chains {
		err = errors.Join(err, s.askFor(f.number(), unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, func(a fields) {
			if c.table == a.text(unix.NFTA_RULE_TABLE) && c.name == a.text(unix.NFTA_RULE_CHAIN) {
				chains[i].rules = append(chains[i].rules, readEffect(a[unix.NFTA_RULE_EXPRESSIONS], families))
			}
		}, text(unix.NFTA_RULE_TABLE, c.table), text(unix.NFTA_RULE_CHAIN, c.name)))
	}
	return chains, err
}

// foreignChain is a chain with what its rules do.
type foreignChain struct {
	table, name string
	wanted      effect // what would matter in it; none but in base chains
	rules       []ruleEffect
}

// effect is what a rule does with every TCP connection.
type effect int

const (
	nothing effect = iota
	translates
	untracks
	jumps
	goes
	leaves // the chain
)

type ruleEffect struct {
	effect
	words string
	into  string // for jumps and goes
}

// The priorities at which detour's chains of nat, and connection tracking, see a packet.
const (
	natPriority   = -100
	trackPriority = -200
)

func newForeignChain(f fields) foreignChain {
	c := foreignChain{table: f.text(unix.NFTA_CHAIN_TABLE), name: f.text(unix.NFTA_CHAIN_NAME)}
	if f[unix.NFTA_CHAIN_HOOK] == nil {
		return c
	}
	at := parse(f[unix.NFTA_CHAIN_HOOK])
	hook, priority := at.number(unix.NFTA_HOOK_HOOKNUM), int32(at.number(unix.NFTA_HOOK_PRIORITY))
	switch {
	case hook != unix.NF_INET_PRE_ROUTING && hook != unix.NF_INET_LOCAL_OUT:
	case f.text(unix.NFTA_CHAIN_TYPE) == "nat" && priority <= natPriority:
		c.wanted = translates
	case priority < trackPriority:
		c.wanted = untracks
	}
	return c
}

// endedBy walks through the chain as a packet of TCP does that meets no narrow rule, and returns the rule that does what
// matters in the base chain, and those that led there.
func (c foreignChain) endedBy(all []foreignChain, from []string) []string {
	for _, r := range c.rules {
		switch r.effect {
		case c.wanted:
			if c.wanted != nothing {
				return []string{r.words}
			}
		case leaves:
			return nil
		case jumps, goes:
			i := slices.IndexFunc(all, func(o foreignChain) bool { return o.table == c.table && o.name == r.into })
			if i >= 0 && !slices.Contains(from, r.into) {
				next := all[i]
				next.wanted = c.wanted
				if by := next.endedBy(all, append(slices.Clip(from), r.into)); by != nil {
					return append([]string{r.words}, by...)
				}
			}
			if r.effect == goes {
				return nil
			}
		case nothing, translates, untracks:
		}
	}
	return nil
}

// broad are the conditions that every TCP connection of an interface at least meets, and statements that change nothing.
var broad = regexp.MustCompile(`^(meta l4proto tcp|ip protocol tcp|ip6 nexthdr tcp|meta nfproto ipv[46]|[io]ifname (!= "lo"|"(l|lo[^"]+|[^l"][^"]*|l[^o"][^"]*)")|ct state (\S+,)?new(,\S+)?|.* set .*|\[counter\]|\[log\])$`)

// readEffect says what a rule does with every TCP connection of these families; nothing if it matches less.
func readEffect(code []byte, families []rules.Family) ruleEffect {
	var p printer
	out := ruleEffect{words: rule{code: code}.String(), into: jumpOf(code)}
	for a := range decode(code) {
		e := parse(a.data)
		name, f := e.text(unix.NFTA_EXPR_NAME), parse(e[unix.NFTA_EXPR_DATA])
		if does := effectOf(name, &f); does != nothing {
			out.effect = does
		} else if !p.expression(name, &f) {
			p.say("[" + name + "]")
		}
	}
	isBroad := func(word string) bool {
		return broad.MatchString(word) &&
			(word != "meta nfproto ipv4" || slices.Contains(families, rules.IPv4)) && (word != "meta nfproto ipv6" || slices.Contains(families, rules.IPv6))
	}
	if !all(p.words, isBroad) {
		out.effect = nothing
	}
	return out
}

func all(words []string, is func(string) bool) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !is(w) })
}

// What golang.org/x/sys lacks: the attributes of an extension of iptables, and what its CT is told.
const (
	targetName = 1 // NFTA_TARGET_NAME
	targetInfo = 3 // NFTA_TARGET_INFO
	ctNotrack  = 1 // XT_CT_NOTRACK
)

// effectOf says what an expression does that is no condition.
func effectOf(name string, f *fields) effect {
	switch name {
	case "redir", "nat":
		return translates
	case "notrack":
		return untracks
	case "target":
		return effectOfTarget(f.text(targetName), f[targetInfo])
	case "immediate":
		data := parse(f[unix.NFTA_IMMEDIATE_DATA])
		verdict := parse(data[unix.NFTA_DATA_VERDICT])
		switch {
		case data[unix.NFTA_DATA_VERDICT] == nil:
			return nothing
		case verdict.number(unix.NFTA_VERDICT_CODE) == jumpVerdict:
			return jumps
		case verdict[unix.NFTA_VERDICT_CHAIN] != nil:
			return goes
		}
		return leaves
	}
	return nothing
}

func effectOfTarget(name string, info []byte) effect {
	switch {
	case name == "REDIRECT", name == "DNAT", name == "NETMAP":
		return translates
	case name == "NOTRACK", name == "CT" && len(info) >= 2 && binary.NativeEndian.Uint16(info)&ctNotrack != 0:
		return untracks
	}
	return nothing
}
