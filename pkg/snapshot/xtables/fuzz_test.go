package xtables

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/legacy"
	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/rules"
)

// fuzzed is a printer for a family, whose sets have names if their number is even.
func fuzzed(six bool) *printer {
	p := &printer{family: rules.IPv4, setName: func(i uint16) (string, bool) { return "set", i%2 == 0 }}
	if six {
		p.family = rules.IPv6
	}
	return p
}

// Whatever a blob holds, it is printed, or unknown.
func FuzzExtension(f *testing.F) {
	for _, known := range []map[string][]decoder{matches, targets} {
		for name, decoders := range known {
			for _, d := range decoders {
				for _, revision := range d.revisions {
					f.Add(name, revision, make([]byte, d.size), false)
					f.Add(name, revision, slices.Repeat([]byte{0xff}, d.size+8), true)
					f.Add(name, revision, slices.Repeat([]byte{1, 0}, d.size+1), true)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, name string, revision int, info []byte, six bool) {
		for _, known := range []map[string][]decoder{matches, targets} {
			p := fuzzed(six)
			p.extension(" -m ", known, extension{name, revision, info})
			if got := string(p.text); !strings.HasPrefix(got, " -m ") {
				t.Errorf("%s %d: %q", name, revision, got)
			}
		}
	})
}

// tableOf makes a legacy table with a base chain INPUT, a chain a, and these matches in its only rule.
func tableOf(six bool, matches []byte) legacy.Table {
	t := legacy.Table{Info: legacy.Info{ValidHooks: 1 << unix.NF_INET_LOCAL_IN}, Family: fuzzed(six).family, Name: "filter"}
	offsets := map[bool]int{false: 88, true: 140}[six]
	entry := func(matches []byte, name string, body string) {
		b := make(blob, abiOf(t.Family).counters+16)
		target := make(blob, headSize)
		copy(target[2:], name)
		b.put16(offsets, uint16(len(b)+len(matches)))
		b.put16(offsets+2, uint16(len(b)+len(matches)+headSize+len(body)))
		t.Entries = slices.Concat(t.Entries, b, matches, target, []byte(body))
	}
	verdict := func(v int32) string { return string(binary.NativeEndian.AppendUint32(nil, uint32(v))) }
	entry(matches, "", verdict(-1))
	entry(nil, "", verdict(-2))
	entry(nil, "ERROR", "a\x00\x00\x00")
	entry(nil, "", verdict(-5))
	entry(nil, "ERROR", "ERROR\x00\x00\x00")
	return t
}

func TestALegacyTableIsReadWithoutTheKernel(t *testing.T) {
	for _, six := range []bool{false, true} {
		p := fuzzed(six)
		if err := p.legacyTable(tableOf(six, nil)); err != nil {
			t.Fatal(err)
		}
		if got := string(p.text); got != "*filter\n:INPUT ACCEPT [0:0]\n:a - [0:0]\n[0:0] -A INPUT -j DROP\nCOMMIT\n" {
			t.Errorf("got %s", got)
		}
		table := tableOf(six, nil)
		for end := range len(table.Entries) { // of a table that is cut off, nothing is read
			cut := table
			cut.Entries = table.Entries[:end:end]
			if err := fuzzed(six).legacyTable(cut); err == nil {
				t.Errorf("of %d bytes there is no error", end)
			}
		}
	}
}

// Whatever the kernel gives as a legacy table, it is read or refused.
func FuzzLegacyTable(f *testing.F) {
	for _, six := range []bool{false, true} {
		t := tableOf(six, append([]byte{40, 0, 't', 'c', 'p'}, make([]byte, 35)...))
		f.Add(t.ValidHooks, uint32(0), t.Entries, six)
		f.Add(t.ValidHooks, uint32(0), tableOf(six, []byte{0xff, 0xff}).Entries, six)
	}
	f.Fuzz(func(_ *testing.T, hooks, place uint32, entries []byte, six bool) {
		p := fuzzed(six)
		t := legacy.Table{Info: legacy.Info{ValidHooks: hooks}, Family: p.family, Name: "filter", Entries: entries}
		for hook := range t.Entry {
			t.Entry[hook] = place * uint32(hook)
		}
		_ = p.legacyTable(t)
	})
}

// Whatever nf_tables lists as a rule, it is read.
func FuzzNativeRule(f *testing.F) {
	expression := func(name string, inner ...netlink.Attribute) netlink.Attribute {
		return netlink.Nested(unix.NFTA_LIST_ELEM, netlink.Text(unix.NFTA_EXPR_NAME, name), netlink.Nested(unix.NFTA_EXPR_DATA, inner...))
	}
	value := func(kind uint16, data string) netlink.Attribute {
		return netlink.Nested(kind, netlink.Attribute{Kind: unix.NFTA_DATA_VALUE, Data: []byte(data)})
	}
	load := expression("payload", netlink.Number(unix.NFTA_PAYLOAD_DREG, 1), netlink.Number(unix.NFTA_PAYLOAD_BASE, 2), netlink.Number(unix.NFTA_PAYLOAD_OFFSET, 2), netlink.Number(unix.NFTA_PAYLOAD_LEN, 2))
	protocol := []netlink.Attribute{
		expression("meta", netlink.Number(unix.NFTA_META_DREG, 1), netlink.Number(unix.NFTA_META_KEY, unix.NFT_META_L4PROTO)),
		expression("cmp", netlink.Number(unix.NFTA_CMP_SREG, 1), netlink.Number(unix.NFTA_CMP_OP, 0), value(unix.NFTA_CMP_DATA, "\x06")),
	}
	for _, rest := range [][]netlink.Attribute{
		{load, expression("cmp", netlink.Number(unix.NFTA_CMP_SREG, 1), netlink.Number(unix.NFTA_CMP_OP, 1), value(unix.NFTA_CMP_DATA, "\x00\x50"))},
		{load, expression("range", netlink.Number(unix.NFTA_RANGE_SREG, 1), netlink.Number(unix.NFTA_RANGE_OP, 0), value(unix.NFTA_RANGE_FROM_DATA, "\x00\x50"), value(unix.NFTA_RANGE_TO_DATA, "\x00\x60"))},
		{expression("match", netlink.Text(extensionName, "comment"), netlink.Number(extensionRevision, 0), netlink.Text(extensionInfo, "x"))},
		{expression("log", netlink.Attribute{Kind: unix.NFTA_LOG_GROUP, Data: []byte{0, 1}}, netlink.Text(unix.NFTA_LOG_PREFIX, "x"))},
	} {
		f.Add(netlink.AppendAttributes(nil, append(protocol, rest...)...), []byte{0, 2, 'x', 0}, false)
	}
	f.Fuzz(func(t *testing.T, code, userdata []byte, six bool) {
		p := fuzzed(six)
		var fields netlink.Fields
		fields[unix.NFTA_RULE_EXPRESSIONS], fields[unix.NFTA_RULE_USERDATA] = code, userdata
		r := reader{family: p.family}
		r.read(&fields)
		p.rule("chain", &r.rule)
		if got := string(p.text); !strings.HasPrefix(got, "[") || strings.Index(got, "\n") != len(got)-1 {
			t.Errorf("got %q", got)
		}
	})
}
