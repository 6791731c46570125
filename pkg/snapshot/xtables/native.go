package xtables

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
)

// reader makes a rule of iptables from a rule of nf_tables.
type reader struct {
	rule
	family    rules.Family
	registers [16]register // of 4 bytes each; a value stands at its first
	statement string       // one that iptables has no words for, or that doesn't fit into a rule of iptables; else ""
	native    bool         // the rule has conditions or statements without words
	extended  bool         // the rule has a match or a target, which only iptables makes
}

// register is what an expression has loaded, or a value.
type register struct {
	from      string // the expression's name; "" if there is none
	base, key uint32 // of a payload: the header and the offset; key of meta
	size      int    // of a payload
	mask      blob   // nil if everything counts
	value     blob   // of an immediate
}

// What golang.org/x/sys lacks: the attributes of an iptables extension, the headers that a payload's offset refers to, and the
// attribute by which an expression writes instead of reading.
const (
	extensionName, extensionRevision, extensionInfo = 1, 2, 3 // NFTA_MATCH_..., NFTA_TARGET_...

	networkHeader   = 1
	transportHeader = 2

	bitwiseOperation = 6
	exthdrSource     = 7
)

// read replaces the rule by one that the kernel lists. It refers to the attributes.
func (r *reader) read(f *netlink.Fields) {
	*r = reader{family: r.family, rule: rule{matches: r.matches[:0]}}
	nft.Expressions(f[unix.NFTA_RULE_EXPRESSIONS], r.expression)
	if comment := nft.Comment(f[unix.NFTA_RULE_USERDATA]); comment != "" {
		r.match("comment", blob(comment))
	}
	if r.statement != "" {
		r.target, r.chain, r.goTo = unknown(r.statement), "", false
	}
}

// expressions that iptables has words for.
var expressions = map[string]func(*reader, *netlink.Fields){
	"bitwise":   (*reader).bitwise,
	"cmp":       (*reader).compare,
	"counter":   (*reader).counter,
	"immediate": (*reader).immediate,
	"limit":     (*reader).limit,
	"log":       (*reader).log,
	"match":     (*reader).extension,
	"meta":      (*reader).meta,
	"payload":   (*reader).payload,
	"range":     (*reader).inRange,
	"target":    (*reader).extensionTarget,
}

// loads are expressions that load what iptables doesn't know, checks those that are conditions themselves, and conditions all
// others that are. The rest does something.
var (
	loads      = []string{"byteorder", "ct", "exthdr", "fib", "hash", "inner", "numgen", "osf", "rt", "socket", "tunnel", "xfrm"}
	checks     = []string{"connlimit", "last", "objref", "quota"}
	conditions = append(checks, "cmp", "limit", "lookup", "match", "range")
)

func (r *reader) expression(name string, f *netlink.Fields) {
	read := expressions[name]
	stores := name == "ct" && f[unix.NFTA_CT_SREG] != nil || name == "exthdr" && f[exthdrSource] != nil ||
		name == "lookup" && f[unix.NFTA_LOOKUP_DREG] != nil && f.Number(unix.NFTA_LOOKUP_DREG) == unix.NFT_REG_VERDICT
	switch {
	case slices.Contains(conditions, name) && r.target.name+r.statement != "":
		r.do(cmp.Or(r.statement, r.target.name)) // it is done before the condition is checked
	case read != nil:
		read(r, f)
	case stores:
		r.do(name)
	case name == "lookup" && f[unix.NFTA_LOOKUP_DREG] == nil, slices.Contains(checks, name):
		r.doubt(name)
	case name == "lookup", slices.Contains(loads, name):
		for i := range r.registers { // any of them
			r.registers[i] = register{from: name}
		}
	default:
		r.do(name)
	}
}

// doubt puts an unknown condition into the rule.
func (r *reader) doubt(condition string) {
	r.native = true
	isSame := func(e extension) bool { return e.name == condition && e.revision < 0 }
	if !slices.ContainsFunc(r.matches, isSame) {
		r.matches = append(r.matches, unknown(condition))
	}
}

// do makes the rule's outcome unknown.
func (r *reader) do(statement string) {
	r.native = true
	r.statement = statement
}

func (r *reader) match(name string, info blob) {
	r.matches = append(r.matches, extension{name: name, info: info})
}

// setTarget sets the target, or the verdict or chain. A rule of nf_tables may have several.
func (r *reader) setTarget(target extension, chain string) {
	if r.target.name != "" || r.chain != "" {
		r.do(r.target.name + r.chain)
	}
	r.target, r.chain = target, chain
}

// register returns a register by its number: four of 16 bytes or 16 of 4 bytes.
func (r *reader) register(number uint32) *register {
	switch {
	case number >= unix.NFT_REG_1 && number <= unix.NFT_REG_4:
		return &r.registers[4*(number-unix.NFT_REG_1)]
	case number >= unix.NFT_REG32_00 && number <= unix.NFT_REG32_15:
		return &r.registers[number-unix.NFT_REG32_00]
	}
	return &register{}
}

func (r *reader) counter(f *netlink.Fields) {
	r.packets, r.bytes = number64(f[unix.NFTA_COUNTER_PACKETS]), number64(f[unix.NFTA_COUNTER_BYTES])
}

func number64(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func (r *reader) readExtension(f *netlink.Fields) extension {
	r.extended = true
	return extension{f.Text(extensionName), int(f.Number(extensionRevision)), f[extensionInfo]}
}

func (r *reader) extension(f *netlink.Fields) { r.matches = append(r.matches, r.readExtension(f)) }

func (r *reader) extensionTarget(f *netlink.Fields) { r.setTarget(r.readExtension(f), "") }

func (r *reader) payload(f *netlink.Fields) {
	if f[unix.NFTA_PAYLOAD_SREG] != nil {
		r.do("payload")
		return
	}
	*r.register(f.Number(unix.NFTA_PAYLOAD_DREG)) = register{from: "payload", base: f.Number(unix.NFTA_PAYLOAD_BASE),
		key: f.Number(unix.NFTA_PAYLOAD_OFFSET), size: int(f.Number(unix.NFTA_PAYLOAD_LEN))}
}

func (r *reader) meta(f *netlink.Fields) {
	key := f.Number(unix.NFTA_META_KEY)
	if f[unix.NFTA_META_SREG] == nil {
		*r.register(f.Number(unix.NFTA_META_DREG)) = register{from: "meta", key: key}
		return
	}
	value := r.register(f.Number(unix.NFTA_META_SREG)).value
	switch {
	case key == unix.NFT_META_MARK && len(value) == 4:
		r.setTarget(extension{"MARK", 2, append(bytes.Clone(value), 0xff, 0xff, 0xff, 0xff)}, "")
	case key == unix.NFT_META_NFTRACE && len(value) > 0 && value[0] != 0:
		r.setTarget(extension{name: "TRACE"}, "")
	default:
		r.do("meta")
	}
}

// bitwise masks a register. What it does otherwise has no words.
func (r *reader) bitwise(f *netlink.Fields) {
	o := *r.register(f.Number(unix.NFTA_BITWISE_SREG))
	xor := nft.Value(f[unix.NFTA_BITWISE_XOR])
	if o.mask != nil || o.value != nil || f.Number(bitwiseOperation) != 0 || len(bytes.Trim(xor, "\x00")) != 0 {
		o = register{from: "bitwise"}
	}
	o.mask = nft.Value(f[unix.NFTA_BITWISE_MASK])
	*r.register(f.Number(unix.NFTA_BITWISE_DREG)) = o
}

func (r *reader) immediate(f *netlink.Fields) {
	if number := f.Number(unix.NFTA_IMMEDIATE_DREG); number != unix.NFT_REG_VERDICT {
		*r.register(number) = register{from: "immediate", value: nft.Value(f[unix.NFTA_IMMEDIATE_DATA])}
		return
	}
	chain, code := nft.Verdict(f)
	switch code {
	case nft.Accept:
		chain = "ACCEPT"
	case nft.Drop:
		chain = "DROP"
	case nft.Return:
		chain = "RETURN"
	case nft.Jump:
	case nft.Goto:
		r.goTo = true
	default:
		r.do("immediate")
		return
	}
	r.setTarget(extension{}, chain)
}

// limit makes struct xt_rateinfo.
func (r *reader) limit(f *netlink.Fields) {
	rate, unit := number64(f[unix.NFTA_LIMIT_RATE]), number64(f[unix.NFTA_LIMIT_UNIT])
	if f.Number(unix.NFTA_LIMIT_TYPE) != unix.NFT_LIMIT_PKTS || f.Number(unix.NFTA_LIMIT_FLAGS) != 0 || rate == 0 {
		r.doubt("limit")
		return
	}
	info := binary.NativeEndian.AppendUint32(nil, uint32(limitScale*unit/rate))
	r.match("limit", binary.NativeEndian.AppendUint32(info, f.Number(unix.NFTA_LIMIT_BURST)))
}

// log makes struct xt_nflog_info, with a prefix that may be longer.
func (r *reader) log(f *netlink.Fields) {
	group, threshold := f[unix.NFTA_LOG_GROUP], f[unix.NFTA_LOG_QTHRESHOLD]
	if len(group) != 2 {
		r.do("log")
		return
	}
	info := make(blob, 12, 12+128)
	info.put(0, f.Number(unix.NFTA_LOG_SNAPLEN))
	info.put16(4, binary.BigEndian.Uint16(group))
	if len(threshold) == 2 {
		info.put16(6, binary.BigEndian.Uint16(threshold))
	}
	if f[unix.NFTA_LOG_SNAPLEN] != nil {
		info.put16(8, 1) // XT_NFLOG_F_COPY_LEN
	}
	r.setTarget(extension{name: "NFLOG", info: append(append(info, f.Text(unix.NFTA_LOG_PREFIX)...), "\x00\x00\x00\x00\x00"...)}, "")
}
