// Package xtables reads the iptables tables of the calling thread's network namespace from the kernel, and prints them as
// iptables-save -c and ip6tables-save -c do, of either variant. It starts no program, loads no module and changes nothing.
//
// A match, a target or an expression of nf_tables that the package has no words for is printed as `-m NAME [unknown]` or
// `-j NAME [unknown]`, in place of all its options. `-m NAME [unknown]` is a condition that may hold or not.
// `-j NAME [unknown]` stands for everything that the rule does: it may change the packet, end the chain, or neither. So
// whoever reads the text needs no more than to treat an option that it doesn't know as one of an unknown match or target.
package xtables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/rules"
)

// Tables are a family's tables.
type Tables struct {
	Nft    string // the text of iptables-nft-save -c; "" if there are no tables
	Legacy string // the text of iptables-legacy-save -c; "" if there are no tables
	// Names are those of the tables of nf_tables that Nft has. It has a table if its base chains have iptables' names, types, hooks
	// and priorities, and iptables could have made all its rules, or made one that nft has no words for. All others are nft's own,
	// dormant ones as well.
	Names []string
}

// Save reads the tables of a family. All tables of iptables-nft are of one moment, and each of iptables-legacy is. A kernel
// without nf_tables, or without legacy tables, has no tables of that variant.
func Save(f rules.Family) (Tables, error) {
	var t Tables
	p := newPrinter(f)
	names, err := saveNft(p)
	if err != nil {
		return Tables{}, explain(f, "iptables-nft", err)
	}
	t.Nft, t.Names = string(p.text), names
	p = newPrinter(f)
	if err := saveLegacy(p); err != nil {
		return Tables{}, explain(f, "iptables-legacy", err)
	}
	t.Legacy = string(p.text)
	return t, nil
}

func newPrinter(f rules.Family) *printer { return &printer{family: f, setName: setNames()} }

// explain says what was to be read, and what to do.
func explain(f rules.Family, variant string, err error) error {
	advice := ""
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		advice = ": run as root, or with CAP_NET_ADMIN in the namespace"
	case errors.Is(err, netlink.ErrChanged):
		advice = ": run it again"
	}
	return fmt.Errorf("read the %s tables of %s: %w%s", f, variant, err, advice)
}
