// Package snapshot reads what decides over packets in a network namespace, straight from the kernel, for package trace: iptables' tables of
// both variants, nf_tables' own tables, ipsets, and the routing. It starts no program and changes nothing.
//
// What it reads goes through the same texts, and the same front-ends, as the files of a bug report.
package snapshot

import (
	"fmt"
	"os"
	"slices"
	"strings"

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
	tables, err := readTables()
	if err != nil {
		return nil, err
	}
	if err := inOrder(tables); err != nil {
		return nil, err
	}
	r, err := readRouting()
	return &trace.Namespace{Tables: tables, Routing: r}, err
}

var families = map[rules.Family]trace.Family{rules.IPv4: trace.IP, rules.IPv6: trace.IP6}

func readTables() ([]*trace.Table, error) {
	sets, err := readSets()
	if err != nil {
		return nil, err
	}
	var all []*trace.Table
	iptables := map[string][]string{} // the tables of iptables-nft by nft's family
	for f, family := range families {
		saved, err := xtables.Save(f)
		if err != nil {
			return nil, err
		}
		iptables[string(family)] = saved.Names
		for _, variant := range []struct{ origin, text string }{{iptsave.Legacy, saved.Legacy}, {iptsave.NFT, saved.Nft}} {
			tables, err := iptsave.Read([]byte(variant.text), family, variant.origin, sets)
			if err != nil {
				return nil, fmt.Errorf("read the tables of %s: %w", variant.origin, err)
			}
			all = append(all, tables...)
		}
	}
	data, err := nftables.Read(func(family, table string) bool { return slices.Contains(iptables[family], table) })
	if err != nil {
		return nil, err
	}
	tables, err := nftjson.Read(data)
	if err != nil {
		return nil, fmt.Errorf("read nf_tables: %w", err)
	}
	// Of the tables that have been skipped only the names are there.
	tables = slices.DeleteFunc(tables, func(t *trace.Table) bool { return slices.Contains(iptables[string(t.Family)], t.Name) })
	return append(all, tables...), nil
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
