// Package nftables reads the native nf_tables ruleset of a network namespace as the JSON that `nft -j list ruleset` prints
// (libnftables-json(5)). It starts no program: detour's image has none, and many nodes have no nft.
package nftables

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// attempts is how often Read begins anew when the ruleset changes meanwhile.
const attempts = 20

// Read lists the ruleset of the calling thread's network namespace. The caller must keep the goroutine on that thread.
// The listing is consistent: if the ruleset changes meanwhile, Read begins anew, and returns netlink.ErrChanged if it never
// keeps still. Of a table for which skip returns true only the table itself is listed; skip may be nil.
//
// Read needs CAP_NET_ADMIN in the namespace's user namespace. It changes nothing.
//
// The listing differs from that of nft 1.0.6 where that is inexact: numbers that /etc/iproute2 gives names to stay numbers;
// "meta nfproto" ahead of "reject with tcp reset" stays; all devices of a chain are listed; a statement that is unknown is
// {"unknown": "EXPRESSION"}, where EXPRESSION is the kernel's name of it; a chain in braces is listed like other chains.
func Read(skip func(family, table string) bool) ([]byte, error) {
	c, err := nft.Open()
	if err != nil {
		return nil, fmt.Errorf("list the nf_tables ruleset: %w", err)
	}
	defer c.Close()
	for range attempts {
		var before, after uint32
		if before, err = generation(c); err != nil {
			return nil, fmt.Errorf("list the nf_tables ruleset: %w", nft.Explain(err))
		}
		var listing []byte
		listing, err = list(c, skip)
		if err != nil && !isChange(err) {
			return nil, fmt.Errorf("list the nf_tables ruleset: %w", nft.Explain(err))
		}
		if after, err = generation(c); err == nil && after == before && listing != nil {
			return listing, nil
		}
	}
	return nil, fmt.Errorf("list the nf_tables ruleset, %d times: %w; try again when it changes less", attempts, netlink.ErrChanged)
}

// isChange reports whether an error is due to what others have done to the ruleset: a table or set has gone.
func isChange(err error) bool {
	return errors.Is(err, netlink.ErrChanged) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR)
}

const generationID = 1 // NFTA_GEN_ID

// generation is the number of changes that the ruleset has seen.
func generation(c nft.Conn) (id uint32, err error) {
	err = c.Ask(unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, func(f netlink.Fields) { id = f.Number(generationID) })
	return id, err
}

// table is a table, and its sets, which rules refer to.
type table struct {
	family byte
	name   string
	flags  uint32
	handle uint64
	sets   map[string]*set
}

// writer writes the listing.
type writer struct {
	out       []byte
	stateless bool              // counters and quotas are written without their state
	devices   map[uint32]string // names of interfaces, by index
}

func (w *writer) append(o object) {
	w.out = append(w.out, ",\n"...)
	w.out = appendJSON(w.out, o)
}

// version is that of the format, not that of a program.
var metainfo = one("metainfo", object{{"json_schema_version", 1}})

func list(c nft.Conn, skip func(family, table string) bool) ([]byte, error) {
	tables, err := listTables(c)
	w := &writer{devices: map[uint32]string{}}
	w.out = appendJSON([]byte(`{"nftables": [`), metainfo)
	for _, t := range tables {
		w.append(t.json())
		if skip == nil || !skip(t.familyName(), t.name) {
			err = errors.Join(err, w.table(c, t))
		}
	}
	return append(w.out, "]}\n"...), err
}

// listTables lists the tables of all families in the order in which they were made.
func listTables(c nft.Conn) (tables []*table, err error) {
	for family := range familyNames {
		err = errors.Join(err, c.Ask(byte(family), unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP, func(f netlink.Fields) {
			tables = append(tables, &table{
				family: byte(family), name: f.Text(unix.NFTA_TABLE_NAME), flags: f.Number(unix.NFTA_TABLE_FLAGS),
				handle: number64(f[tableHandle]), sets: map[string]*set{},
			})
		}))
	}
	slices.SortFunc(tables, func(a, b *table) int { return cmp.Compare(a.handle, b.handle) })
	return tables, err
}

func (w *writer) table(c nft.Conn, t *table) error {
	dump := func(kind int, each func(*netlink.Fields)) error {
		name := netlink.Text(unix.NFTA_TABLE_NAME, t.name) // the number of the table's name is the same in all requests
		return c.Ask(t.family, kind, unix.NLM_F_DUMP, func(f netlink.Fields) {
			if f.Text(unix.NFTA_TABLE_NAME) == t.name { // older kernels list all tables
				each(&f)
			}
		}, name)
	}
	var sets []*set
	err := dump(unix.NFT_MSG_GETSET, func(f *netlink.Fields) {
		s := newSet(f)
		sets = append(sets, s)
		t.sets[s.name] = s
	})
	for _, s := range sets {
		err = errors.Join(err, fill(c, t, s))
	}
	return errors.Join(err,
		dump(unix.NFT_MSG_GETOBJ, func(f *netlink.Fields) { w.append(t.object(f)) }),
		w.namedSets(t, sets),
		dump(unix.NFT_MSG_GETFLOWTABLE, func(f *netlink.Fields) { w.append(t.flowtable(f)) }),
		dump(unix.NFT_MSG_GETCHAIN, func(f *netlink.Fields) { w.append(t.chain(f)) }),
		dump(unix.NFT_MSG_GETRULE, func(f *netlink.Fields) { w.append(w.rule(t, f)) }))
}

func (w *writer) namedSets(t *table, sets []*set) error {
	for _, s := range sets {
		if !s.anonymous() {
			w.append(w.set(t, s))
		}
	}
	return nil
}

// fill reads what the set holds.
func fill(c nft.Conn, t *table, s *set) error {
	err := c.Ask(t.family, unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, func(f netlink.Fields) {
		for a := range netlink.Attributes(f[unix.NFTA_SET_ELEM_LIST_ELEMENTS]) {
			e := netlink.Parse(a.Data)
			s.elements = append(s.elements, newElement(t, &e))
		}
	}, netlink.Text(unix.NFTA_SET_ELEM_LIST_TABLE, t.name), netlink.Text(unix.NFTA_SET_ELEM_LIST_SET, s.name))
	s.sorted()
	return err
}
