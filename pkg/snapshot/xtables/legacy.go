package xtables

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/detour-cni/detour/pkg/legacy"
	"github.com/detour-cni/detour/pkg/rules"
)

// saveLegacy reads the tables of x_tables. It asks only for those that the namespace has: asking for others would make them.
func saveLegacy(p *printer) error {
	names, err := legacy.Tables(p.family)
	if errors.Is(err, fs.ErrNotExist) || len(names) == 0 && err == nil {
		return nil
	}
	if err != nil {
		return err
	}
	s, err := legacy.Open(p.family)
	if err != nil {
		return err
	}
	defer s.Close()
	for _, name := range names {
		t, err := s.Read(name)
		if err == nil {
			err = p.legacyTable(t)
		}
		if err != nil {
			return fmt.Errorf("read table %s: %w", name, err)
		}
	}
	return nil
}

// abi is what differs between struct ipt_entry and ip6t_entry.
type abi struct {
	addrSize int // the addresses and masks come first in struct ipt_ip and ip6t_ip6, then the devices
	flags    int // where the flags are, with those that invert behind them
	goTo     byte
	counters int // where the counters are, with which it ends
}

func abiOf(f rules.Family) abi {
	if f == rules.IPv6 {
		return abi{16, 131, 4, 152}
	}
	return abi{4, 82, 2, 96}
}
