package nftables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// Read lists the table of the calling thread's namespace as String of a Table prints it, without the gate's element. It is
// empty if there is no table.
func Read() (Listing, error) {
	c, err := nft.Open()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", tableHead, err)
	}
	defer c.Close()
	l, err := list(c)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", tableHead, err)
	}
	return l, nil
}

func list(c nft.Conn) (Listing, error) {
	var l Listing
	var sets []set
	err := c.Ask(unix.NFPROTO_INET, unix.NFT_MSG_GETSET, unix.NLM_F_DUMP, func(f netlink.Fields) {
		name, kind, flags := f.Text(unix.NFTA_SET_NAME), f.Number(unix.NFTA_SET_KEY_TYPE), f.Number(unix.NFTA_SET_FLAGS)
		if flags&unix.NFT_SET_ANONYMOUS != 0 {
			sets = append(sets, set{name: name, of: nft.TypeOf(kind), intervals: flags&unix.NFT_SET_INTERVAL != 0})
			return
		}
		desc := netlink.Parse(f[unix.NFTA_SET_DESC])
		l = append(l, block{"set " + name, []string{setHead(kind, desc.Number(unix.NFTA_SET_DESC_SIZE), flags)}})
	}, netlink.Text(unix.NFTA_SET_TABLE, tableName))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // there is no such table
	}
	for i := range sets {
		err = errors.Join(err, fill(c, &sets[i]))
	}
	err = errors.Join(err, c.Ask(unix.NFPROTO_INET, unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, func(f netlink.Fields) {
		if f.Text(unix.NFTA_CHAIN_TABLE) == tableName { // older kernels list those of every table
			l = append(l, listedChain(f))
		}
	}, netlink.Text(unix.NFTA_CHAIN_TABLE, tableName)))
	err = errors.Join(err, c.Ask(unix.NFPROTO_INET, unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, func(f netlink.Fields) {
		if i := l.find("chain " + f.Text(unix.NFTA_RULE_CHAIN)); i >= 0 && f.Text(unix.NFTA_RULE_TABLE) == tableName {
			r := rule{f[unix.NFTA_RULE_EXPRESSIONS], sets, nft.Comment(f[unix.NFTA_RULE_USERDATA])}
			l[i].lines = append(l[i].lines, r.String())
		}
	}, netlink.Text(unix.NFTA_RULE_TABLE, tableName)))
	return l, err
}

// fill reads what the set holds. A set of an unknown type stays empty.
func fill(c nft.Conn, to *set) error {
	if to.of == nil {
		return nil
	}
	var borders []border
	err := c.Ask(unix.NFPROTO_INET, unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, func(f netlink.Fields) {
		for a := range netlink.Attributes(f[unix.NFTA_SET_ELEM_LIST_ELEMENTS]) {
			element := netlink.Parse(a.Data)
			var k key
			copy(k[:], nft.Value(element[unix.NFTA_SET_ELEM_KEY]))
			borders = append(borders, border{k, element.Number(unix.NFTA_SET_ELEM_FLAGS)&unix.NFT_SET_ELEM_INTERVAL_END != 0})
		}
	}, netlink.Text(unix.NFTA_SET_ELEM_LIST_TABLE, tableName), netlink.Text(unix.NFTA_SET_ELEM_LIST_SET, to.name))
	to.spans = to.spansOf(borders)
	return err
}

func listedChain(f netlink.Fields) block {
	b := block{name: "chain " + f.Text(unix.NFTA_CHAIN_NAME)}
	if f[unix.NFTA_CHAIN_HOOK] == nil {
		return b
	}
	at := netlink.Parse(f[unix.NFTA_CHAIN_HOOK])
	h := hook{kind: f.Text(unix.NFTA_CHAIN_TYPE), number: at.Number(unix.NFTA_HOOK_HOOKNUM), priority: int32(at.Number(unix.NFTA_HOOK_PRIORITY))}
	h.name = fmt.Sprint(h.number)
	for _, known := range hooks {
		if known.number == h.number {
			h.name = known.name
		}
	}
	b.lines = []string{h.line(nft.NameOf(nft.Verdicts, f.Number(unix.NFTA_CHAIN_POLICY)))}
	return b
}
