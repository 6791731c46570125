package snapshot

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/iptsave"
)

var protocolOf = map[trace.Family]byte{
	trace.IP: unix.NFPROTO_IPV4, trace.IP6: unix.NFPROTO_IPV6, trace.Inet: unix.NFPROTO_INET, trace.Netdev: unix.NFPROTO_NETDEV,
}

// tableHandle is NFTA_TABLE_HANDLE, which golang.org/x/sys lacks.
const tableHandle = 4

// inOrder sorts the tables as they were created, by their handles. The kernel does not tell when those of iptables-legacy were: they come
// first.
func inOrder(tables []*trace.Table) error {
	conn, err := nft.Open()
	if err != nil {
		return fmt.Errorf("order the tables: %w", err)
	}
	defer conn.Close()
	created := map[*trace.Table]uint64{}
	for family, number := range protocolOf {
		err := conn.Ask(number, unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, func(f netlink.Fields) {
			if handle := f[tableHandle]; len(handle) == 8 {
				note(created, tables, family, f.Text(unix.NFTA_TABLE_NAME), binary.BigEndian.Uint64(handle))
			}
		})
		if err != nil {
			return fmt.Errorf("order the tables: %w", err)
		}
	}
	slices.SortStableFunc(tables, func(a, b *trace.Table) int { return cmp.Compare(created[a], created[b]) })
	return nil
}

func note(created map[*trace.Table]uint64, tables []*trace.Table, family trace.Family, name string, handle uint64) {
	for _, t := range tables {
		if t.Family == family && t.Name == name && t.Origin != iptsave.Legacy {
			created[t] = handle
		}
	}
}
