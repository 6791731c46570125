package nftables

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// ruleOf is what the kernel sends for one expression.
func ruleOf(name string, attributes ...netlink.Attribute) []byte {
	return netlink.AppendAttributes(nil, netlink.Nested(unix.NFTA_LIST_ELEM,
		netlink.Text(unix.NFTA_EXPR_NAME, name), netlink.Nested(unix.NFTA_EXPR_DATA, attributes...)))
}

func short(kind uint16, n uint16) netlink.Attribute {
	return netlink.Attribute{Kind: kind, Data: binary.BigEndian.AppendUint16(nil, n)}
}

// What this machine's nft or kernel lacks, or nobody knows.
func TestExpressionsThatNftHasNoRulesFor(t *testing.T) {
	for want, code := range map[string][]byte{
		`[{"unknown": "quux"}]`:      ruleOf("quux"),
		`[{"unknown": "cmp"}]`:       ruleOf("cmp", netlink.Number(unix.NFTA_CMP_SREG, unix.NFT_REG_1)),
		`[{"unknown": "meta"}]`:      ruleOf("meta", netlink.Number(unix.NFTA_META_KEY, 99), netlink.Number(unix.NFTA_META_DREG, unix.NFT_REG_1)),
		`[{"unknown": "lookup"}]`:    ruleOf("lookup", netlink.Text(unix.NFTA_LOOKUP_SET, "none")),
		`[{"unknown": "immediate"}]`: ruleOf("immediate", netlink.Number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)),
		`[{"unknown": "quux"}, {"unknown": "cmp"}]`: slices.Concat(
			ruleOf("meta", netlink.Number(unix.NFTA_META_KEY, unix.NFT_META_MARK), netlink.Number(unix.NFTA_META_DREG, unix.NFT_REG_1)),
			ruleOf("quux"),
			ruleOf("cmp", netlink.Number(unix.NFTA_CMP_SREG, unix.NFT_REG_1), netlink.Number(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ),
				netlink.Nested(unix.NFTA_CMP_DATA, netlink.Number(unix.NFTA_DATA_VALUE, 1)))),
		`[{"last": null}]`: ruleOf("last", netlink.Number(lastSet, 0)),
		`[{"last": {"used": 258}}]`: ruleOf("last", netlink.Number(lastSet, 1),
			netlink.Attribute{Kind: lastMsecs, Data: binary.BigEndian.AppendUint64(nil, 258)}),
		`[{"queue": {"num": 3}}]`: ruleOf("queue", short(queueNumber, 3), short(queueTotal, 1)),
		`[{"queue": {"num": {"range": [1, 4]}, "flags": ["bypass", "fanout"]}}]`: ruleOf("queue", short(queueNumber, 1), short(queueTotal, 4), short(queueFlag, 3)),
		`[{"flow": {"op": "add", "flowtable": "@ft"}}]`:                          ruleOf("flow_offload", netlink.Text(flowTable, "ft")),
	} {
		s, in := fuzzTable(unix.NFPROTO_INET)
		w := &writer{Snapshot: s}
		if got := string(appendJSON(nil, w.decode(in, code))); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestAFlowtableHasItsDevices(t *testing.T) {
	devices := netlink.Nested(flowtableDevices, netlink.Text(1, "eth0"), netlink.Text(1, "lo"))
	f := netlink.Parse(netlink.AppendAttributes(nil, netlink.Text(unix.NFTA_TABLE_NAME, "t"), netlink.Text(flowtableName, "ft"),
		netlink.Nested(flowtableHook, netlink.Number(flowtableHookNum, 0), netlink.Number(flowtablePriority, 5), devices)))
	_, in := fuzzTable(unix.NFPROTO_INET)
	const want = `{"flowtable": {"family": "inet", "table": "t", "name": "ft", "handle": 0, "hook": "ingress", "prio": 5, "dev": ["eth0", "lo"]}}`
	if got := string(appendJSON(nil, in.flowtable(&f))); got != want {
		t.Errorf("got %s", got)
	}
}
