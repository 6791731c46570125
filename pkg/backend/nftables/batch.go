package nftables

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// batch is a transaction about detour's table.
type batch struct{ *nft.Batch }

// message is what one of its messages does, for when the kernel refuses it.
type message struct {
	verb  string
	chain *chain
	rule  *rule
}

const makeTable = "make " + tableHead

// String says what the message does.
func (m message) String() string {
	switch {
	case m.rule != nil:
		return m.verb + " rule `" + m.chain.name + " " + brief(m.rule.String(), "") + "`"
	case m.chain != nil:
		return m.verb + " chain " + m.chain.name
	}
	return m.verb
}

func (b batch) add(m message, kind int, flags uint16, attributes ...netlink.Attribute) {
	b.Add(m, unix.NFPROTO_INET, kind, flags, attributes...)
}

// state is what the namespace has of detour's table before a transaction.
type state struct{ exists, gateOpen bool }

// transaction makes the table, in the place of an existing one, and leaves its gate as it is. It deletes nothing if there
// is nothing: closing the socket would take longer.
func (t Table) transaction(before state) *nft.Batch {
	b := batch{nft.NewBatch(nil)}
	if before.exists {
		b.deleteTable()
	}
	b.add(message{verb: makeTable}, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, netlink.Text(unix.NFTA_TABLE_NAME, tableName))
	if t.gated {
		b.gate(before.gateOpen)
	}
	for i := range t.chains {
		b.chain(&t.chains[i])
	}
	for i := range t.chains {
		for j := range t.chains[i].rules {
			b.rule(&t.chains[i], &t.chains[i].rules[j])
		}
	}
	return b.End()
}

// Batch is what Apply sends into a namespace without the table. The benchmark sends it without detour.
func (t Table) Batch() []byte { return t.transaction(state{}).Bytes() }

func (b batch) chain(c *chain) {
	attributes := []netlink.Attribute{netlink.Text(unix.NFTA_CHAIN_TABLE, tableName), netlink.Text(unix.NFTA_CHAIN_NAME, c.name)}
	if c.hook != nil {
		attributes = append(attributes,
			netlink.Nested(unix.NFTA_CHAIN_HOOK, netlink.Number(unix.NFTA_HOOK_HOOKNUM, c.hook.number), netlink.Number(unix.NFTA_HOOK_PRIORITY, uint32(c.hook.priority))),
			netlink.Number(unix.NFTA_CHAIN_POLICY, nft.Accept), netlink.Text(unix.NFTA_CHAIN_TYPE, c.hook.kind))
	}
	b.add(message{verb: "make", chain: c}, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, attributes...)
}

// rule appends the lists that the rule looks up, which the kernel wants filled by then, and the rule.
func (b batch) rule(c *chain, r *rule) {
	for i := range r.sets {
		b.list(&r.sets[i], message{"make list of", c, r})
	}
	attributes := []netlink.Attribute{netlink.Text(unix.NFTA_RULE_TABLE, tableName), netlink.Text(unix.NFTA_RULE_CHAIN, c.name), netlink.Nest(unix.NFTA_RULE_EXPRESSIONS, r.code)}
	if r.why != "" {
		attributes = append(attributes, userdata(unix.NFTA_RULE_USERDATA, udataComment, append([]byte(r.why), 0)))
	}
	b.add(message{"program", c, r}, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, attributes...)
}

func (b batch) list(s *set, m message) {
	flags := uint32(unix.NFT_SET_ANONYMOUS | unix.NFT_SET_CONSTANT)
	if s.intervals {
		flags |= unix.NFT_SET_INTERVAL
	}
	b.add(m, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE,
		netlink.Text(unix.NFTA_SET_TABLE, tableName), netlink.Text(unix.NFTA_SET_NAME, s.name), netlink.Number(unix.NFTA_SET_ID, s.id),
		netlink.Number(unix.NFTA_SET_FLAGS, flags), netlink.Number(unix.NFTA_SET_KEY_TYPE, s.of.ID), netlink.Number(unix.NFTA_SET_KEY_LEN, uint32(s.of.Size)),
		userdata(unix.NFTA_SET_USERDATA, udataKeyByteOrder, binary.NativeEndian.AppendUint32(nil, bigEndian)))
	for _, part := range s.elements() {
		b.elements(m, s.name, s.id, part)
	}
}

func (b batch) elements(m message, set string, id uint32, list []byte) {
	b.add(m, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE,
		netlink.Text(unix.NFTA_SET_ELEM_LIST_TABLE, tableName), netlink.Text(unix.NFTA_SET_ELEM_LIST_SET, set),
		netlink.Number(unix.NFTA_SET_ELEM_LIST_SET_ID, id), netlink.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list))
}

// gate makes the gate's set.
func (b batch) gate(open bool) {
	m := message{verb: "make set " + gateSet}
	b.add(m, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE,
		netlink.Text(unix.NFTA_SET_TABLE, tableName), netlink.Text(unix.NFTA_SET_NAME, gateSet), netlink.Number(unix.NFTA_SET_ID, 0),
		netlink.Number(unix.NFTA_SET_FLAGS, gateFlags), netlink.Number(unix.NFTA_SET_KEY_TYPE, nft.Mark.ID), netlink.Number(unix.NFTA_SET_KEY_LEN, uint32(nft.Mark.Size)),
		netlink.Nested(unix.NFTA_SET_DESC, netlink.Number(unix.NFTA_SET_DESC_SIZE, gateSize)))
	if open {
		b.elements(m, gateSet, 0, key{}.appendElement(nil, nft.Mark.Size, 0))
	}
}

// User data that nft stores with a rule or a set. The kernel doesn't look at it.
const (
	udataComment      = 0 // NFTNL_UDATA_RULE_COMMENT
	udataKeyByteOrder = 0 // NFTNL_UDATA_SET_KEYBYTEORDER
	bigEndian         = 2 // nft's BYTEORDER_BIG_ENDIAN
)

// userdata is one entry: type, length, value.
func userdata(attribute uint16, kind byte, v []byte) netlink.Attribute {
	return netlink.Attribute{Kind: attribute, Data: append([]byte{kind, byte(len(v))}, v...)}
}

// removal deletes the table.
func removal() *nft.Batch {
	b := batch{nft.NewBatch(nil)}
	b.deleteTable()
	return b.End()
}

func (b batch) deleteTable() {
	b.Delete(message{verb: "delete " + tableHead}, unix.NFPROTO_INET, unix.NFT_MSG_DELTABLE, netlink.Text(unix.NFTA_TABLE_NAME, tableName))
}
