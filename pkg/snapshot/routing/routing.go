// Package routing reads what decides over routes in a network namespace as the JSON that ip prints with -j, straight from the
// kernel. It has the keys that decide; those that only inform, such as a route's protocol or a link's MTU, are left out.
package routing

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// Listing is what ip prints of a network namespace.
type Listing struct {
	Routes    []byte // ip -j route show table all
	Addresses []byte // ip -j address
	Rules     []byte // ip -j rule, and then ip -6 -j rule
}

// entry is an entry of a listing.
type entry map[string]any

// set leaves a key out whose value is the default.
func (e entry) set(key string, value any, is bool) {
	if is {
		e[key] = value
	}
}

// Read reads the calling thread's network namespace. It needs no privilege and changes nothing. Each of the four listings is of
// one moment, but not all together: a listing that changes while the kernel sends it is read again, and the error is
// netlink.ErrChanged if it never keeps still.
func Read() (Listing, error) {
	c, err := netlink.Open(unix.NETLINK_ROUTE)
	if err != nil {
		return Listing{}, fmt.Errorf("list the routing: %w", err)
	}
	defer c.Close()
	l, err := read(&reader{conn: c, links: map[uint32]entry{}})
	if err != nil {
		return Listing{}, fmt.Errorf("list the routing: %w", err)
	}
	return l, nil
}

func read(r *reader) (l Listing, err error) {
	list, err := r.addresses()
	l.Addresses = encode(list)
	if err != nil {
		return l, err
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		routes, err := r.list(family, unix.RTM_GETROUTE, unix.SizeofRtMsg, r.route)
		if err != nil {
			return l, err
		}
		rules, err := r.list(family, unix.RTM_GETRULE, unix.SizeofRtMsg, r.rule)
		if err != nil {
			return l, err
		}
		l.Routes = append(l.Routes, encode(routes)...)
		l.Rules = append(l.Rules, encode(rules)...)
	}
	return l, nil
}

// encode can't fail for what this package lists.
func encode(list []entry) []byte {
	if list == nil {
		list = []entry{}
	}
	b, _ := json.Marshal(list)
	return append(b, '\n')
}

type reader struct {
	conn  *netlink.Conn
	links map[uint32]entry // by index
}

// attempts is how often a listing is read that changes meanwhile.
const attempts = 20

// list asks for all objects of a kind. header is the size of what is ahead of the attributes. An object for which read returns
// nil is left out. A kernel without the family has none.
func (r *reader) list(family byte, kind, header int, read func(header []byte, f *fields) entry) (list []entry, err error) {
	for range attempts {
		list = nil
		body := make([]byte, header)
		body[0] = family
		err = r.conn.Ask(kind, unix.NLM_F_DUMP, body, func(answer []byte) {
			if len(answer) < header || family != unix.AF_UNSPEC && answer[0] != family {
				return
			}
			if e := read(answer[:header], parse(answer[header:])); e != nil {
				list = append(list, e)
			}
		})
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, nil
		}
		if !errors.Is(err, netlink.ErrChanged) {
			return list, err
		}
	}
	return nil, err
}
