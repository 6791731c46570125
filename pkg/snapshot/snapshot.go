// Package snapshot reads what decides over packets in a network namespace, straight from the kernel, for package trace: iptables' tables of
// both variants, nf_tables' own tables, ipsets, and the routing. It starts no program and changes nothing.
//
// What it reads goes through the same texts, and the same front-ends, as the files of a bug report.
package snapshot

import (
	"fmt"
	"os"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/snapshot/nftables"
	"github.com/detour-cni/detour/pkg/snapshot/xtables"
	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/iptsave"
	"github.com/detour-cni/detour/pkg/trace/nftjson"
)

// Read reads the calling thread's network namespace. It needs CAP_NET_ADMIN there. Each of nf_tables, iptables-legacy's tables and the
// routing is of one moment, but not all together.
func Read() (*trace.Namespace, error) {
	ns := &trace.Namespace{}
	own := map[string]map[string]bool{} // the tables of iptables-nft by nft's family
	for f, family := range families {
		tables, err := xtables.Save(f)
		if err != nil {
			return nil, err
		}
		own[string(family)] = map[string]bool{}
		for _, name := range tables.Names {
			own[string(family)][name] = true
		}
		for origin, text := range map[string]string{iptsave.Legacy: tables.Legacy, iptsave.NFT: tables.Nft} {
			read, err := iptsave.Read([]byte(text), family, origin, nil)
			if err != nil {
				return nil, fmt.Errorf("read the tables of %s: %w", origin, err)
			}
			ns.Tables = append(ns.Tables, read...)
		}
	}
	data, err := nftables.Read(func(family, table string) bool { return own[family][table] })
	if err != nil {
		return nil, err
	}
	tables, err := nftjson.Read(data)
	if err != nil {
		return nil, fmt.Errorf("read nf_tables: %w", err)
	}
	ns.Tables = append(ns.Tables, tables...)
	if err := inOrder(ns.Tables); err != nil {
		return nil, err
	}
	ns.Routing, err = readRouting()
	return ns, err
}

var families = map[rules.Family]trace.Family{rules.IPv4: trace.IP, rules.IPv6: trace.IP6}

func readRouting() (trace.Routing, error) {
	r := trace.Routing{}
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
