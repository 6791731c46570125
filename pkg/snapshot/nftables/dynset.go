package nftables

import (
	"bytes"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// dynset reads a statement that adds to a set or deletes from it.
func (d *decoder) dynset(f *netlink.Fields) bool {
	in := d.w.lookup(d.table, f.Text(unix.NFTA_DYNSET_SET_NAME))
	op, known := dynsetNames[uint64(f.Number(unix.NFTA_DYNSET_OP))]
	if in == nil || !known {
		return false
	}
	key := d.wide(f, unix.NFTA_DYNSET_SREG_KEY, in.keyBits())
	var data operand
	if f[unix.NFTA_DYNSET_SREG_DATA] != nil && len(in.data) > 0 {
		data = d.wide(f, unix.NFTA_DYNSET_SREG_DATA, sizeOf(in.data))
	}
	e := element{table: d.table, timeout: number64(f[unix.NFTA_DYNSET_TIMEOUT])}
	code := expressions(bytes.Clone(f[unix.NFTA_DYNSET_EXPR]), f[dynsetExpressions])
	return d.add(&statement{
		resolve: func(c *context) {
			key = c.resolveElement(key)
			if data != nil {
				data = c.resolve(data)
			}
		},
		write: func(w *writer) any {
			elem := w.extras(&e, w.as(in.key[0], key))
			list := w.statelessly(func() []any { return w.statements(e.table, code) })
			if in.meter() && len(list) > 0 {
				return one("meter", object{{"key", elem}, {"stmt", list[0]}, {"size", in.size}, {"name", in.name}})
			}
			return dynsetJSON(w, in, op, elem, data, list)
		},
	})
}

const dynsetExpressions = 10

func dynsetJSON(w *writer, in *set, op string, elem any, data operand, list []any) any {
	word, out := "set", object{{"op", op}, {"elem", elem}}
	if data != nil {
		word, out = "map", out.with("data", w.as(in.data[0], data))
	}
	out = out.with(word, "@"+in.name)
	if len(list) > 0 {
		out = out.with("stmt", list)
	}
	return one(word, out)
}
