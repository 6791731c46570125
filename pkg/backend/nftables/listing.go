package nftables

import (
	"fmt"
	"strings"

	"github.com/detour-cni/detour/pkg/nft"
)

// tableName is the name of the one table, of family inet.
const tableName = "detour"

// Listing is a table in nft's language: a compiled one, or the kernel's.
type Listing []block

// block is a set, whose one line is its type, or a chain, whose lines are its hook, if it is a base chain, and its rules.
type block struct {
	name  string
	lines []string
}

// String prints the table as input for `nft -f`, which replaces an existing table in one transaction.
func (t Table) String() string { return t.listing().String() }

func (t Table) listing() Listing {
	var l Listing
	if t.gated {
		l = append(l, block{"set " + gateSet, []string{setHead(nft.Mark.ID, gateSize, gateFlags)}})
	}
	for _, c := range t.chains {
		l = append(l, c.block())
	}
	return l
}

// setHead is the type of a named set.
func setHead(kind, size, flags uint32) string {
	if kind != nft.Mark.ID || flags != gateFlags {
		return fmt.Sprintf("%s%d; size %d; flags %#x;", typePrefix, kind, size, flags)
	}
	return fmt.Sprintf("%smark; size %d; flags dynamic;", typePrefix, size)
}

func (c chain) block() block {
	b := block{name: "chain " + c.name}
	if c.hook != nil {
		b.lines = append(b.lines, c.hook.String())
	}
	for _, r := range c.rules {
		b.lines = append(b.lines, r.String())
	}
	return b
}

func (h hook) String() string { return h.line("accept") }

func (h hook) line(policy string) string {
	return fmt.Sprintf("%s%s hook %s priority %d; policy %s;", typePrefix, h.kind, h.name, h.priority, policy)
}

// typePrefix begins the line of a set or of a hook, and no rule.
const typePrefix = "type "

const (
	tableHead = "table inet " + tableName
	replace   = "add " + tableHead + "\ndelete " + tableHead + "\n"
)

// String prints the listing as String of a Table does.
func (l Listing) String() string {
	var b strings.Builder
	b.WriteString(replace + tableHead + " {\n")
	for _, block := range l {
		fmt.Fprintf(&b, "\t%s {\n", block.name)
		for _, line := range block.lines {
			fmt.Fprintf(&b, "\t\t%s\n", line)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// parseListing reads what String printed.
func parseListing(text string) (Listing, error) {
	body, begins := strings.CutPrefix(text, replace+tableHead+" {\n")
	body, ends := strings.CutSuffix(body, "}\n")
	if !begins || !ends {
		return nil, fmt.Errorf("parse %s: it does not begin and end as the table does", tableHead)
	}
	var l Listing
	inside := false // a block
	for line := range strings.Lines(body) {
		rule, isRule := strings.CutPrefix(line, "\t\t")
		name, isBlock := strings.CutSuffix(line, " {\n")
		switch {
		case inside && isRule:
			b := &l[len(l)-1]
			b.lines = append(b.lines, strings.TrimSuffix(rule, "\n"))
		case inside && line == "\t}\n":
			inside = false
		case !inside && isBlock && !isRule && line[0] == '\t':
			l = append(l, block{name: name[1:]})
			inside = true
		default:
			return nil, fmt.Errorf("parse %s: %q is not expected here", tableHead, line)
		}
	}
	if inside {
		return nil, fmt.Errorf("parse %s: %s has no end", tableHead, l[len(l)-1].name)
	}
	return l, nil
}
