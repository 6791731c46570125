package nftrace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// lists are where the kernel names each family's legacy tables. The thread's own: the process's first thread may be in another
// network namespace.
var lists = map[rules.Family]string{
	rules.IPv4: "/proc/thread-self/net/ip_tables_names",
	rules.IPv6: "/proc/thread-self/net/ip6_tables_names",
}

// LegacyTables lists the tables of iptables-legacy in the calling thread's network namespace, in no order. No trace shows what
// their rules do. A table that somebody only looked at is there, too.
func LegacyTables(family rules.Family) ([]string, error) {
	names, err := os.ReadFile(lists[family])
	if errors.Is(err, fs.ErrNotExist) { // the kernel has no legacy tables
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list legacy tables: %w", err)
	}
	return strings.Fields(string(names)), nil
}
