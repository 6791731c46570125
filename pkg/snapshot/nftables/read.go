// Package nftables reads the native nf_tables ruleset of a network namespace as the JSON that `nft -j list ruleset` prints
// (libnftables-json(5)). It starts no program: detour's image has none, and many nodes have no nft.
//
// The JSON differs from that of nft 1.0.6 where that is inexact. Numbers that files of /etc/iproute2 name stay numbers. A match
// of the family ahead of "reject with tcp reset" stays. A field in a concatenation is not shifted once more. All devices of a
// chain are listed. A chain in braces is listed as other chains are. An expression that is not known is {"unknown": "NAME"}, by
// the kernel's name.
package nftables

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// attempts is how often Take and Read begin anew when the ruleset changes meanwhile.
const attempts = 20

// Snapshot is a ruleset as it was when it was taken. What anonymous sets hold, which takes the kernel long where there are
// thousands, is read when a rule is written that refers to them. The methods may be called concurrently and from any thread.
type Snapshot struct {
	mu         sync.Mutex
	conn       nft.Conn
	generation uint32
	tables     []*table
	devices    map[uint32]string // names of interfaces, by index
}

// Take reads the ruleset of the calling thread's network namespace. If the ruleset changes meanwhile, Take begins anew, and
// returns netlink.ErrChanged if it never keeps still. Of a table for which skip returns true only the table itself is read;
// skip may be nil. The caller must close the snapshot.
//
// A kernel without nf_tables has an empty ruleset. Take needs CAP_NET_ADMIN in the user namespace that owns the network namespace. It changes nothing.
func Take(skip func(family, table string) bool) (*Snapshot, error) {
	for range attempts {
		s, err := take(skip)
		if err == nil {
			return s, nil
		}
		if !isChange(err) {
			return nil, fmt.Errorf("list the nf_tables ruleset: %w", nft.Explain(err))
		}
	}
	return nil, errRestless
}

var errRestless = fmt.Errorf("list the nf_tables ruleset, %d times: %w; try again when it changes less", attempts, netlink.ErrChanged)

// isChange reports whether an error is due to what others have done to the ruleset: a table or a set has gone, for example.
func isChange(err error) bool {
	return errors.Is(err, netlink.ErrChanged) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR)
}

func take(skip func(family, table string) bool) (*Snapshot, error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, err
	}
	s := &Snapshot{conn: conn}
	if s.devices, err = deviceNames(); err == nil {
		err = s.load(skip)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Read is Take and Listing. It begins anew if the ruleset changes before it has been written.
func Read(skip func(family, table string) bool) ([]byte, error) {
	for range attempts {
		s, err := Take(skip)
		if err != nil {
			return nil, err
		}
		listing, err := s.Listing()
		s.Close()
		if !isChange(err) {
			return listing, err
		}
	}
	return nil, errRestless
}

// Close releases the socket. No other method may be called afterwards.
func (s *Snapshot) Close() { s.conn.Close() }

// Listing is the ruleset as `nft -j list ruleset` prints it. The error is netlink.ErrChanged if the ruleset is no longer what
// it was when the snapshot was taken; so are those of the other methods.
func (s *Snapshot) Listing() ([]byte, error) {
	return s.write(func(w *writer) {
		for _, t := range s.tables {
			w.outline(t)
			for _, c := range t.chains {
				w.rules(t, c)
			}
		}
	})
}

// Outline is Listing without the rules.
func (s *Snapshot) Outline() ([]byte, error) {
	return s.write(func(w *writer) {
		for _, t := range s.tables {
			w.outline(t)
		}
	})
}

// Rules are the rules of one chain, in the form of Listing; an empty list if there is no such chain.
func (s *Snapshot) Rules(family, tableName, chain string) ([]byte, error) {
	return s.write(func(w *writer) {
		for _, t := range s.tables {
			if t.familyName() != family || t.name != tableName {
				continue
			}
			for _, c := range t.chains {
				if c.name == chain {
					w.rules(t, c)
				}
			}
		}
	})
}

// writer writes a part of the snapshot.
type writer struct {
	*Snapshot
	out       []byte
	stateless bool // counters and quotas are written without their state
	err       error
}

// metainfo has the version of the format, and none of a program.
var metainfo = one("metainfo", object{{"json_schema_version", 1}})

func (s *Snapshot) write(fill func(*writer)) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &writer{Snapshot: s}
	w.out = appendJSON([]byte(`{"nftables": [`), metainfo)
	fill(w)
	if err := errors.Join(w.err, s.unchanged()); err != nil {
		return nil, fmt.Errorf("list the nf_tables ruleset: %w", err)
	}
	return append(w.out, "]}\n"...), nil
}

func (w *writer) append(o object) {
	w.out = append(w.out, ",\n"...)
	w.out = appendJSON(w.out, o)
}

func (w *writer) outline(t *table) {
	w.append(t.json())
	for _, o := range t.objects {
		w.append(o)
	}
	for _, s := range t.order {
		if !s.anonymous() {
			w.append(w.set(t, s))
		}
	}
	for _, o := range t.flowtables {
		w.append(o)
	}
	for _, c := range t.chains {
		w.append(c.head)
	}
}

func (w *writer) rules(t *table, c *chain) {
	for _, r := range c.rules {
		out := object{{"family", t.familyName()}, {"table", t.name}, {"chain", c.name}, {"handle", r.handle}}
		if r.comment != "" {
			out = out.with(commentKey, r.comment)
		}
		if list := w.decode(t, r.code); len(list) > 0 {
			out = out.with("expr", list)
		}
		w.append(one("rule", out))
	}
}
