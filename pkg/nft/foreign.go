package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/rules"
)

// Dormant says, one sentence each, which of our own tables are switched off.
func Dormant(own func(family Family, table string) bool) ([]string, error) {
	var found []string
	err := eachFamily(func(c Conn, f Family) error {
		return c.Ask(f.number(), unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, func(t netlink.Fields) {
			if name := t.Text(unix.NFTA_TABLE_NAME); own(f, name) && t.Number(unix.NFTA_TABLE_FLAGS)&unix.NFT_TABLE_F_DORMANT != 0 {
				found = append(found, fmt.Sprintf("table %s %s is dormant: none of its rules is met", f, name))
			}
		})
	})
	return found, err
}

// Foreign says, one sentence each, what in others' tables keeps all TCP connections of these families, or all of an
// interface, from being redirected: a rule that exempts them from tracking, or one that translates their address in a nat
// chain that runs no later than detour's. The first translation wins, and the kernel doesn't tell which of two chains of the
// same priority runs first. A rule that matches less is somebody's intention and not reported. Nor is a rule that accepts,
// which ends its own chain only, nor one that drops, which lets nothing past the proxy.
func Foreign(families []rules.Family, own func(family Family, table string) bool) ([]string, error) {
	var found []string
	err := eachFamily(func(conn Conn, f Family) error {
		chains, err := conn.foreign(f, families, own)
		for _, c := range chains {
			if by := c.endedBy(chains, nil); by != nil {
				found = append(found, fmt.Sprintf("chain %s of table %s %s has `%s`: what it takes is not redirected", c.name, f, c.table, strings.Join(by, "`, and `")))
			}
		}
		return err
	})
	return found, err
}

// Family is nft's name of a family of tables.
type Family string

// The families whose tables see IP packets.
const (
	Inet Family = "inet"
	IP   Family = "ip"
	IP6  Family = "ip6"
)

func (f Family) number() byte {
	return byte(NumberOf([]Named{{"inet", unix.NFPROTO_INET}, {"ip", unix.NFPROTO_IPV4}, {"ip6", unix.NFPROTO_IPV6}}, string(f)))
}

// eachFamily asks about every family's tables; a kernel without nf_tables has none.
func eachFamily(ask func(Conn, Family) error) error {
	if Works() != nil {
		return nil
	}
	c, err := Open()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, f := range []Family{Inet, IP, IP6} {
		if err := ask(c, f); err != nil {
			return fmt.Errorf("list tables of family %s: %w", f, err)
		}
	}
	return nil
}

func (c Conn) foreign(f Family, families []rules.Family, own func(Family, string) bool) ([]foreignChain, error) {
	if f == IP && !slices.Contains(families, rules.IPv4) || f == IP6 && !slices.Contains(families, rules.IPv6) {
		return nil, nil
	}
	var chains []foreignChain
	err := c.Ask(f.number(), unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, func(a netlink.Fields) {
		if chain := newForeignChain(a); !own(f, chain.table) {
			chains = append(chains, chain)
		}
	})
	for i := range chains {
		chain := &chains[i]
		err = errors.Join(err, c.Rules(f.number(), chain.table, chain.name, func(a netlink.Fields) {
			chain.rules = append(chain.rules, readEffect(a[unix.NFTA_RULE_EXPRESSIONS], families))
		}))
	}
	return chains, err
}

// foreignChain is a chain with what its rules do.
type foreignChain struct {
	table, name string
	wanted      effect // the effect to look for, from this base chain on
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

func newForeignChain(f netlink.Fields) foreignChain {
	c := foreignChain{table: f.Text(unix.NFTA_CHAIN_TABLE), name: f.Text(unix.NFTA_CHAIN_NAME)}
	if f[unix.NFTA_CHAIN_HOOK] == nil {
		return c
	}
	at := netlink.Parse(f[unix.NFTA_CHAIN_HOOK])
	hook, priority := at.Number(unix.NFTA_HOOK_HOOKNUM), int32(at.Number(unix.NFTA_HOOK_PRIORITY))
	switch {
	case hook != unix.NF_INET_PRE_ROUTING && hook != unix.NF_INET_LOCAL_OUT:
	case f.Text(unix.NFTA_CHAIN_TYPE) == "nat" && priority <= natPriority:
		c.wanted = translates
	case priority < trackPriority:
		c.wanted = untracks
	}
	return c
}

// endedBy walks through the chain as a TCP packet does that matches no narrow rule. It returns the rule that has the wanted
// effect, after those that jumped there.
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

// broad matches the conditions that every TCP connection, or every one of an interface, meets, and statements that change
// nothing.
var broad = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(meta l4proto tcp|ip protocol tcp|ip6 nexthdr tcp|meta nfproto ipv[46]|[io]ifname (!= "lo"|"(l|lo[^"]+|[^l"][^"]*|l[^o"][^"]*)")|ct state (\S+,)?new(,\S+)?|.* set .*|\[counter\]|\[log\])$`)
})

// readEffect says what a rule does with every TCP connection of these families; nothing if it matches less.
func readEffect(code []byte, families []rules.Family) ruleEffect {
	p := printer{elements: noElements}
	out := ruleEffect{words: Print(code, noElements), into: JumpOf(code)}
	Expressions(code, func(name string, f *netlink.Fields) {
		if does := effectOf(name, f); does != nothing {
			out.effect = does
		} else if !p.expression(name, f) {
			p.say("[" + name + "]")
		}
	})
	isBroad := func(word string) bool {
		return broad().MatchString(word) &&
			(word != "meta nfproto ipv4" || slices.Contains(families, rules.IPv4)) && (word != "meta nfproto ipv6" || slices.Contains(families, rules.IPv6))
	}
	if !all(p.words, isBroad) {
		out.effect = nothing
	}
	return out
}

func noElements(string, uint32) string { return "" }

func all(words []string, is func(string) bool) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !is(w) })
}

// What golang.org/x/sys lacks: the attributes of an iptables extension, and the flag of its target CT.
const (
	targetName = 1 // NFTA_TARGET_NAME
	targetInfo = 3 // NFTA_TARGET_INFO
	ctNotrack  = 1 // XT_CT_NOTRACK
)

// effectOf says what an expression does, unless it is a condition.
func effectOf(name string, f *netlink.Fields) effect {
	switch name {
	case "redir", "nat":
		return translates
	case "notrack":
		return untracks
	case "target":
		return effectOfTarget(f.Text(targetName), f[targetInfo])
	case "immediate":
		switch chain, code := Verdict(f); {
		case f.Number(unix.NFTA_IMMEDIATE_DREG) != unix.NFT_REG_VERDICT:
			return nothing
		case code == Jump:
			return jumps
		case chain != "":
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
