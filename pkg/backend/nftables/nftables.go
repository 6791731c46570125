// Package nftables programs a Ruleset as one nf_tables table for both families, over netlink and without a program. It
// works in the network namespace of the calling thread, which the caller has entered and locked.
package nftables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// Name is what state and logs call this backend.
const Name = "nftables"

// Apply programs the table in one transaction: all of it or, on an error, nothing. It replaces what an earlier Apply left,
// so that the result is the same however often it runs, but an open gate stays open. The error names the rule that the
// kernel refuses and, if that is why, the feature that the kernel lacks.
func Apply(t Table) error {
	c, err := nft.Open()
	if err != nil {
		err = nft.Explain(err)
	} else {
		defer c.Close()
		err = apply(c, t)
	}
	if err != nil {
		return fmt.Errorf("program %s: %w", tableHead, err)
	}
	return nil
}

func apply(c nft.Conn, t Table) error {
	var before state
	err := c.Ask(unix.NFPROTO_INET, unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK, func(netlink.Fields) { before.exists = true }, netlink.Text(unix.NFTA_TABLE_NAME, tableName))
	if err != nil && !isAbsent(err) {
		return nft.Explain(err)
	}
	if before.exists && t.gated {
		if before.gateOpen, _, err = gate(c); err != nil {
			return err
		}
	}
	return explain(c.Commit(t.transaction(before)))
}

// Remove deletes the table. It is no error if there is none, or no nf_tables.
func Remove() error {
	c, err := nft.Open()
	if err == nil {
		defer c.Close()
		err = c.Commit(removal())
	}
	if err == nil || isAbsent(err) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return fmt.Errorf("remove %s: %w", tableHead, err)
}

// isAbsent reports whether a request about the table has failed because there is none. Before 4.16 the kernel loads the family's
// module only to make a table.
func isAbsent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT)
}

// Gate reports whether the namespace's table has rules that wait behind a gate, and whether it is open. Only Remove closes
// it again.
func Gate() (open, gated bool, err error) {
	c, err := nft.Open()
	if err == nil {
		defer c.Close()
		open, gated, err = gate(c)
	}
	if err != nil {
		return false, false, fmt.Errorf("read %s: %w", tableHead, err)
	}
	return open, gated, nil
}

func gate(c nft.Conn) (open, gated bool, err error) {
	err = c.Ask(unix.NFPROTO_INET, unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, func(f netlink.Fields) {
		open = open || len(f[unix.NFTA_SET_ELEM_LIST_ELEMENTS]) > 0
	}, netlink.Text(unix.NFTA_SET_ELEM_LIST_TABLE, tableName), netlink.Text(unix.NFTA_SET_ELEM_LIST_SET, gateSet))
	if errors.Is(err, unix.ENOENT) {
		return false, false, nil
	}
	return open, err == nil, err
}
