// Package nftables programs a Ruleset as one nf_tables table for both families, over netlink and without a program. It
// works in the network namespace of the calling thread, which the caller has entered and locked.
package nftables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/rules"
)

// Name is what state and logs call this backend.
const Name = "nftables"

// Apply programs the table in one transaction: all of it, or on an error nothing. What an earlier Apply left is replaced,
// so that the result is the same however often it runs, but a gate that is armed stays so. The error names the rule that
// the kernel refuses and, where that is so, the feature that it lacks.
func Apply(t Table) error {
	s, err := open()
	if err != nil {
		return fmt.Errorf("program %s: %w", tableHead, err)
	}
	defer s.close()
	there, err := s.there()
	if err != nil {
		return fmt.Errorf("program %s: %w", tableHead, works(err))
	}
	armed := false
	if there && t.gated {
		armed, _, err = s.armed()
	}
	if err == nil {
		err = s.commit(t.program(there, armed))
	}
	if err != nil {
		return fmt.Errorf("program %s: %w", tableHead, err)
	}
	return nil
}

// Tables lists the tables that the namespace has of a family, with iptables' among them but without inet's.
func Tables(f rules.Family) ([]string, error) {
	s, err := open()
	if err != nil {
		return nil, fmt.Errorf("list %s tables: %w", f, err)
	}
	defer s.close()
	var names []string
	err = s.askFor(protocolOf(f), unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, func(t fields) {
		names = append(names, t.text(unix.NFTA_TABLE_NAME))
	})
	if err != nil {
		return nil, fmt.Errorf("list %s tables: %w", f, err)
	}
	return names, nil
}

// there reports whether the namespace has the table.
func (s *socket) there() (bool, error) {
	err := s.ask(unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK, func(fields) {}, text(unix.NFTA_TABLE_NAME, tableName))
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

// Remove deletes the table. It is no error if there is none, or no nf_tables.
func Remove() error {
	s, err := open()
	if err == nil {
		defer s.close()
		err = s.commit(removal())
	}
	for _, gone := range []error{unix.ENOENT, unix.EPROTONOSUPPORT, unix.EOPNOTSUPP} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", tableHead, err)
	}
	return nil
}

// Armed reports whether the namespace's table has rules that wait (gated), and whether what they wait for has come. Nothing
// takes that back but Remove.
func Armed() (armed, gated bool, err error) {
	s, err := open()
	if err == nil {
		defer s.close()
		armed, gated, err = s.armed()
	}
	if err != nil {
		return false, false, fmt.Errorf("read %s: %w", tableHead, err)
	}
	return armed, gated, nil
}

func (s *socket) armed() (armed, gated bool, err error) {
	err = s.ask(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, func(f fields) {
		armed = armed || len(f[unix.NFTA_SET_ELEM_LIST_ELEMENTS]) > 0
	}, text(unix.NFTA_SET_ELEM_LIST_TABLE, tableName), text(unix.NFTA_SET_ELEM_LIST_SET, armedSet))
	if errors.Is(err, unix.ENOENT) {
		return false, false, nil
	}
	return armed, err == nil, err
}

// Works reports whether the kernel has nf_tables and lets this process use it. It changes nothing; whether the kernel has
// everything that a table needs, Apply finds out.
func Works() error {
	s, err := open()
	if err == nil {
		defer s.close()
		err = s.ask(unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, func(fields) {})
	}
	return works(err)
}

// works says what an error means that a request without content meets with.
func works(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("use nf_tables: %w: CAP_NET_ADMIN is missing", err)
	case errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("use nf_tables: %w: the kernel has no nfnetlink (CONFIG_NETFILTER_NETLINK)", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("use nf_tables: %w: the kernel has none (CONFIG_NF_TABLES)", err)
	}
	return fmt.Errorf("use nf_tables: %w", err)
}
