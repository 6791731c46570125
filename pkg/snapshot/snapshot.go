// Package snapshot reads what decides over packets in a network namespace, straight from the kernel, for package trace: iptables' tables of
// both variants, nf_tables' own tables, ipsets, and the routing. It starts no program and changes nothing.
//
// What it reads goes through the same texts, and the same front-ends, as the files of a bug report.
package snapshot

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/snapshot/ipset"
	"github.com/detour-cni/detour/pkg/snapshot/nftables"
	"github.com/detour-cni/detour/pkg/snapshot/routing"
	"github.com/detour-cni/detour/pkg/snapshot/xtables"
	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/iptsave"
	"github.com/detour-cni/detour/pkg/trace/nftjson"
	"github.com/detour-cni/detour/pkg/trace/routes"
)

// Read reads the calling thread's network namespace. It needs CAP_NET_ADMIN there. Each of nf_tables, iptables-legacy's tables and the
// routing is of one moment, but not all together.
func Read() (*trace.Namespace, error) {
	iptables, names, err := readIptables()
	if err != nil {
		return nil, err
	}
	data, err := nftables.Read(names.has)
	if err != nil {
		return nil, err
	}
	native, err := nftjson.Read(data)
	if err != nil {
		return nil, fmt.Errorf("read nf_tables: %w", err)
	}
	return assemble(iptables, native, names)
}

// With calls f with what Read reads, except that a chain of nf_tables is read when f first asks for its rules: where there are thousands,
// a walk comes to few. f may ask from any thread, but not once it has returned. If somebody changes nf_tables meanwhile, the rules that f
// asks for are an error, netlink.ErrChanged. If f returns it, With calls f once more, with a new Namespace.
func With(f func(*trace.Namespace) error) error {
	for range 2 {
		if err := with(f); !errors.Is(err, netlink.ErrChanged) {
			return err
		}
	}
	return errors.New("the rules changed while they were read: try again")
}

func with(f func(*trace.Namespace) error) error {
	iptables, names, err := readIptables()
	if err != nil {
		return err
	}
	s, err := nftables.Take(names.has)
	if err != nil {
		return err
	}
	defer s.Close()
	outline, err := s.Outline()
	if err != nil {
		return err
	}
	native, err := nftjson.ReadOutline(outline, s.Rules)
	if err != nil {
		return fmt.Errorf("read nf_tables: %w", err)
	}
	ns, err := assemble(iptables, native, names)
	if err != nil {
		return err
	}
	return f(ns)
}

// assemble puts together the tables of iptables, with their names, and those of nf_tables, and adds the routing.
func assemble(iptables, native []*trace.Table, names tableNames) (*trace.Namespace, error) {
	// Of iptables' tables, nf_tables' own list has but the names.
	native = slices.DeleteFunc(native, func(t *trace.Table) bool { return names.has(string(t.Family), t.Name) })
	tables := slices.Concat(iptables, native)
	if err := inOrder(tables); err != nil {
		return nil, err
	}
	r, err := readRouting()
	return &trace.Namespace{Tables: tables, Routing: r}, err
}

var families = map[rules.Family]trace.Family{rules.IPv4: trace.IP, rules.IPv6: trace.IP6}

// tableNames are the names of the tables of nf_tables that are iptables', by nft's family.
type tableNames map[string][]string

func (n tableNames) has(family, table string) bool { return slices.Contains(n[family], table) }

func readIptables() (all []*trace.Table, names tableNames, err error) {
	sets, err := readSets()
	if err != nil {
		return nil, nil, err
	}
	names = tableNames{}
	for f, family := range families {
		saved, err := xtables.Save(f)
		if err != nil {
			return nil, nil, err
		}
		names[string(family)] = saved.Names
		for _, variant := range []struct{ origin, text string }{{iptsave.Legacy, saved.Legacy}, {iptsave.NFT, saved.Nft}} {
			tables, err := iptsave.Read([]byte(variant.text), family, variant.origin, sets)
			if err != nil {
				return nil, nil, fmt.Errorf("read the tables of %s: %w", variant.origin, err)
			}
			all = append(all, tables...)
		}
	}
	return all, names, nil
}

func readSets() (map[string]*iptsave.IPSet, error) {
	text, err := ipset.Save()
	if err != nil {
		return nil, err
	}
	sets, err := iptsave.ReadSets([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("read the IP sets: %w", err)
	}
	return sets, nil
}

func readRouting() (trace.Routing, error) {
	listing, err := routing.Read()
	if err != nil {
		return trace.Routing{}, err
	}
	r, err := routes.Read(listing.Routes, listing.Addresses, listing.Rules)
	if err != nil {
		return trace.Routing{}, fmt.Errorf("read the routing: %w", err)
	}
	r.Forwarding = map[trace.Family]bool{}
	for family, path := range forwarding {
		if value, err := os.ReadFile(path); err == nil {
			r.Forwarding[family] = strings.TrimSpace(string(value)) != "0"
		}
	}
	return r, nil
}

// forwarding are the sysctls of the calling thread's namespace that say whether it forwards packets.
var forwarding = map[trace.Family]string{
	trace.IP: "/proc/sys/net/ipv4/ip_forward", trace.IP6: "/proc/sys/net/ipv6/conf/all/forwarding",
}
