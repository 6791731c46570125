package nftrace

import (
	"math"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// tableOwner is NFT_TABLE_F_OWNER, which golang.org/x/sys lacks.
const tableOwner = 2

// chains are where a packet comes into being for a namespace, ahead of all others, and where it has passed all others.
var chains = []struct {
	name     string
	hook     uint32
	priority int32
	last     bool
}{
	{"prerouting", unix.NF_INET_PRE_ROUTING, math.MinInt32, false},
	{"output", unix.NF_INET_LOCAL_OUT, math.MinInt32, false},
	{"input", unix.NF_INET_LOCAL_IN, math.MaxInt32, true},
	{"postrouting", unix.NF_INET_POST_ROUTING, math.MaxInt32, true},
}

// creation makes the table, with rules that have these expressions.
func creation(table string, flags uint32, rule expressions) *nft.Batch {
	b := nft.NewBatch(nil)
	b.Add("make table", unix.NFPROTO_INET, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		netlink.Text(unix.NFTA_TABLE_NAME, table), netlink.Number(unix.NFTA_TABLE_FLAGS, flags))
	for _, c := range chains {
		b.Add("make chain "+c.name, unix.NFPROTO_INET, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE,
			netlink.Text(unix.NFTA_CHAIN_TABLE, table), netlink.Text(unix.NFTA_CHAIN_NAME, c.name), netlink.Text(unix.NFTA_CHAIN_TYPE, "filter"),
			netlink.Nested(unix.NFTA_CHAIN_HOOK, netlink.Number(unix.NFTA_HOOK_HOOKNUM, c.hook), netlink.Number(unix.NFTA_HOOK_PRIORITY, uint32(c.priority))),
			netlink.Number(unix.NFTA_CHAIN_POLICY, nft.Accept))
		if c.last {
			continue
		}
		b.Add("make rule of chain "+c.name, unix.NFPROTO_INET, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND,
			netlink.Text(unix.NFTA_RULE_TABLE, table), netlink.Text(unix.NFTA_RULE_CHAIN, c.name), netlink.Nest(unix.NFTA_RULE_EXPRESSIONS, rule))
	}
	return b.End()
}

func removal(table string) *nft.Batch {
	b := nft.NewBatch(nil)
	b.Delete("delete table", unix.NFPROTO_INET, unix.NFT_MSG_DELTABLE, netlink.Text(unix.NFTA_TABLE_NAME, table))
	return b.End()
}

// expressions are those of a rule.
type expressions []byte

func (e *expressions) add(name string, attributes ...netlink.Attribute) {
	*e = netlink.AppendAttributes(*e, netlink.Nested(unix.NFTA_LIST_ELEM,
		netlink.Text(unix.NFTA_EXPR_NAME, name), netlink.Nested(unix.NFTA_EXPR_DATA, attributes...)))
}

// meta requires that a packet's property has this value.
func (e *expressions) meta(key uint32, value byte) {
	e.add("meta", netlink.Number(unix.NFTA_META_KEY, key), netlink.Number(unix.NFTA_META_DREG, unix.NFT_REG_1))
	e.equal([]byte{value})
}

// payload requires that a header has this value at an offset.
func (e *expressions) payload(base, offset uint32, value []byte) {
	e.add("payload", netlink.Number(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1), netlink.Number(unix.NFTA_PAYLOAD_BASE, base),
		netlink.Number(unix.NFTA_PAYLOAD_OFFSET, offset), netlink.Number(unix.NFTA_PAYLOAD_LEN, uint32(len(value))))
	e.equal(value)
}

func (e *expressions) equal(value []byte) {
	e.add("cmp", netlink.Number(unix.NFTA_CMP_SREG, unix.NFT_REG_1), netlink.Number(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ), data(unix.NFTA_CMP_DATA, value))
}

// trace turns tracing on for the packet.
func (e *expressions) trace() {
	e.add("immediate", netlink.Number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_1), data(unix.NFTA_IMMEDIATE_DATA, []byte{1}))
	e.add("meta", netlink.Number(unix.NFTA_META_KEY, unix.NFT_META_NFTRACE), netlink.Number(unix.NFTA_META_SREG, unix.NFT_REG_1))
}

func data(kind uint16, value []byte) netlink.Attribute {
	return netlink.Nested(kind, netlink.Attribute{Kind: unix.NFTA_DATA_VALUE, Data: value})
}
