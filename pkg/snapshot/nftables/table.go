package nftables

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// table is a table and what is in it.
type table struct {
	family              byte
	name                string
	flags               uint32
	handle              uint64
	objects, flowtables []object
	sets                map[string]*set
	order               []*set
	chains              []*chain
}

type chain struct {
	name  string
	head  object
	rules []rule
}

type rule struct {
	handle  uint64
	comment string
	code    []byte // expressions, as the kernel has them
}

const (
	generationID = 1 // NFTA_GEN_ID
	tableHandle  = 4
)

// generationOf is how often the ruleset has changed; 0 in a kernel without nf_tables.
func generationOf(c nft.Conn) (id uint32, err error) {
	err = c.Ask(unix.NFPROTO_UNSPEC, unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, func(f netlink.Fields) { id = f.Number(generationID) })
	if isAbsent(err) {
		return 0, nil
	}
	return id, err
}

func isAbsent(err error) bool { return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) }

func (s *Snapshot) unchanged() error {
	now, err := generationOf(s.conn)
	if err == nil && now != s.generation {
		return netlink.ErrChanged
	}
	return err
}

// load reads all but what anonymous sets hold.
func (s *Snapshot) load(skip func(family, table string) bool) (err error) {
	if s.generation, err = generationOf(s.conn); err != nil || s.generation == 0 {
		return err
	}
	if s.tables, err = listTables(s.conn); err != nil {
		return err
	}
	for _, t := range s.tables {
		if skip != nil && skip(t.familyName(), t.name) {
			continue
		}
		if err := s.loadTable(t); err != nil {
			return err
		}
	}
	return s.unchanged()
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

func (s *Snapshot) loadTable(t *table) error {
	chains := map[string]*chain{}
	for _, part := range []struct {
		kind int
		add  func(*netlink.Fields)
	}{
		{unix.NFT_MSG_GETOBJ, func(f *netlink.Fields) { t.objects = append(t.objects, t.object(f)) }},
		{unix.NFT_MSG_GETSET, t.addSet},
		{unix.NFT_MSG_GETFLOWTABLE, func(f *netlink.Fields) { t.flowtables = append(t.flowtables, t.flowtable(f)) }},
		{unix.NFT_MSG_GETCHAIN, func(f *netlink.Fields) {
			c := &chain{name: f.Text(unix.NFTA_CHAIN_NAME), head: t.chain(f)}
			t.chains = append(t.chains, c)
			chains[c.name] = c
		}},
		{unix.NFT_MSG_GETRULE, func(f *netlink.Fields) {
			if c := chains[f.Text(unix.NFTA_RULE_CHAIN)]; c != nil {
				c.rules = append(c.rules, rule{
					number64(f[unix.NFTA_RULE_HANDLE]), comment(f[unix.NFTA_RULE_USERDATA]), bytes.Clone(f[unix.NFTA_RULE_EXPRESSIONS]),
				})
			}
		}},
	} {
		// The table's name has the same number in all these messages.
		err := s.conn.Ask(t.family, part.kind, unix.NLM_F_DUMP, func(f netlink.Fields) {
			if f.Text(unix.NFTA_TABLE_NAME) == t.name { // older kernels list all tables
				part.add(&f)
			}
		}, netlink.Text(unix.NFTA_TABLE_NAME, t.name))
		if err != nil {
			return err
		}
	}
	for _, set := range t.order {
		if set.anonymous() {
			continue
		}
		if err := s.fill(t, set); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) addSet(f *netlink.Fields) {
	s := newSet(f)
	t.sets[s.name] = s
	t.order = append(t.order, s)
}

// lookup finds a set that a rule refers to. An anonymous set is filled now.
func (w *writer) lookup(t *table, name string) *set {
	s := t.sets[name]
	if s != nil && !s.filled {
		w.err = errors.Join(w.err, w.fill(t, s))
	}
	return s
}

// fill reads what the set holds.
func (s *Snapshot) fill(t *table, to *set) error {
	to.filled = true
	err := s.conn.Ask(t.family, unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, func(f netlink.Fields) {
		for a := range netlink.Attributes(f[unix.NFTA_SET_ELEM_LIST_ELEMENTS]) {
			e := netlink.Parse(a.Data)
			to.elements = append(to.elements, newElement(t, &e))
		}
	}, netlink.Text(unix.NFTA_SET_ELEM_LIST_TABLE, t.name), netlink.Text(unix.NFTA_SET_ELEM_LIST_SET, to.name))
	to.sorted()
	return err
}

// deviceNames are the names of the namespace's interfaces, by index.
func deviceNames() (map[uint32]string, error) {
	c, err := netlink.Open(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	all := map[uint32]string{}
	err = c.Ask(unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg), func(body []byte) {
		if len(body) >= unix.SizeofIfInfomsg {
			f := netlink.Parse(body[unix.SizeofIfInfomsg:])
			all[binary.NativeEndian.Uint32(body[4:])] = f.Text(unix.IFLA_IFNAME)
		}
	})
	return all, err
}

// deviceName is an index itself, as a string, if there is no such interface.
func (w *writer) deviceName(index uint32) string {
	if name, ok := w.devices[index]; ok {
		return name
	}
	return strconv.FormatUint(uint64(index), 10)
}
