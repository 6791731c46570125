package nftables

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// rule is a rule as the kernel has it.
type rule struct {
	code []byte // its expressions, as NFTA_RULE_EXPRESSIONS holds them
	sets []set  // the lists that they look up
	why  string
}

// The registers that rules use.
const (
	reg1 = unix.NFT_REG_1
	reg2 = unix.NFT_REG_2
)

// String prints the rule in nft's language, in the same words whether it was made here or the kernel lists it.
func (r rule) String() string {
	words := nft.Print(r.code, r.elements)
	if r.why == "" {
		return words
	}
	return strings.TrimSpace(words + ` comment "` + r.why + `"`)
}

// elements is what a list of the rule's holds; "" if it isn't known.
func (r rule) elements(name string, id uint32) string {
	for _, s := range r.sets {
		if s.name == name && s.id == id && s.of != nil {
			return s.String()
		}
	}
	return ""
}

func (r *rule) add(expression string, attributes ...netlink.Attribute) {
	r.code = netlink.AppendAttributes(r.code, netlink.Nested(unix.NFTA_LIST_ELEM,
		netlink.Text(unix.NFTA_EXPR_NAME, expression), netlink.Nested(unix.NFTA_EXPR_DATA, attributes...)))
}

func (r *rule) load(s *nft.Source) { r.loadFirst(s, s.Size) }

// loadFirst loads the first bytes of a payload, or all of anything else.
func (r *rule) loadFirst(s *nft.Source, size int) {
	if s.Expression == nft.Payload {
		r.add(nft.Payload, netlink.Number(unix.NFTA_PAYLOAD_DREG, reg1), netlink.Number(unix.NFTA_PAYLOAD_BASE, s.Key>>8),
			netlink.Number(unix.NFTA_PAYLOAD_OFFSET, s.Key&0xff), netlink.Number(unix.NFTA_PAYLOAD_LEN, uint32(size)))
		return
	}
	r.add(s.Expression, netlink.Number(unix.NFTA_META_KEY, s.Key), netlink.Number(unix.NFTA_META_DREG, reg1))
}

// mask clears the loaded bits that the mask lacks.
func (r *rule) mask(bits []byte) {
	r.add("bitwise", netlink.Number(unix.NFTA_BITWISE_SREG, reg1), netlink.Number(unix.NFTA_BITWISE_DREG, reg1), netlink.Number(unix.NFTA_BITWISE_LEN, uint32(len(bits))),
		value(unix.NFTA_BITWISE_MASK, bits), value(unix.NFTA_BITWISE_XOR, make([]byte, len(bits))))
}

func (r *rule) compare(op uint32, with []byte) {
	r.add("cmp", netlink.Number(unix.NFTA_CMP_SREG, reg1), netlink.Number(unix.NFTA_CMP_OP, op), value(unix.NFTA_CMP_DATA, with))
}

func (r *rule) equal(s *nft.Source, not bool, with []byte) {
	r.loadFirst(s, len(with))
	r.compare(equality(not), with)
}

func equality(not bool) uint32 {
	if not {
		return unix.NFT_CMP_NEQ
	}
	return unix.NFT_CMP_EQ
}

func (r *rule) lookup(set string, id uint32, not bool) {
	var flags uint32
	if not {
		flags = unix.NFT_LOOKUP_F_INV
	}
	r.add("lookup", netlink.Text(unix.NFTA_LOOKUP_SET, set), netlink.Number(unix.NFTA_LOOKUP_SREG, reg1),
		netlink.Number(unix.NFTA_LOOKUP_SET_ID, id), netlink.Number(unix.NFTA_LOOKUP_FLAGS, flags))
}

// among matches values in one of the spans or, with not, in none; a single range that is no prefix can't be negated. Like
// nft, it makes a set only if it needs one.
func (r *rule) among(s *nft.Source, not bool, spans []span, id uint32) {
	only := spans[0]
	length, prefix := only.prefixLength(s.Datatype)
	switch {
	case len(spans) > 1:
		r.load(s)
		r.lookup(anonymousName, id, not)
		r.sets = append(r.sets, newSet(id, s.Datatype, spans))
	case !prefix:
		r.load(s)
		r.compare(unix.NFT_CMP_GTE, only.from[:s.Size])
		r.compare(unix.NFT_CMP_LTE, only.to[:s.Size])
	case length == 0: // every address: no condition
	case length%8 == 0:
		r.equal(s, not, only.from[:length/8])
	default:
		r.load(s)
		r.mask(leading(s.Size, length))
		r.compare(equality(not), only.from[:s.Size])
	}
}

func (r *rule) immediate(register uint32, v []byte) {
	r.add("immediate", netlink.Number(unix.NFTA_IMMEDIATE_DREG, register), value(unix.NFTA_IMMEDIATE_DATA, v))
}

// verdict decides what happens to the packet. chain is for a jump.
func (r *rule) verdict(code uint32, chain string) {
	attributes := []netlink.Attribute{netlink.Number(unix.NFTA_VERDICT_CODE, code)}
	if code == nft.Jump {
		attributes = append(attributes, netlink.Text(unix.NFTA_VERDICT_CHAIN, chain))
	}
	r.add("immediate", netlink.Number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT),
		netlink.Nested(unix.NFTA_IMMEDIATE_DATA, netlink.Nested(unix.NFTA_DATA_VERDICT, attributes...)))
}

// store writes what is loaded to s.
func (r *rule) store(s *nft.Source) {
	sreg := uint16(unix.NFTA_META_SREG)
	if s.Expression == nft.CT {
		sreg = unix.NFTA_CT_SREG
	}
	r.add(s.Expression, netlink.Number(unix.NFTA_META_KEY, s.Key), netlink.Number(sreg, reg1))
}

// constant loads the same value for every packet. nft's language has for that something that every packet has, with an empty
// mask.
func (r *rule) constant() {
	r.load(&nft.MetaMark)
	r.mask(make([]byte, nft.MetaMark.Size))
}

// value is data that the kernel copies into a register or compares with one.
func value(kind uint16, data []byte) netlink.Attribute {
	return netlink.Nested(kind, netlink.Attribute{Kind: unix.NFTA_DATA_VALUE, Data: data})
}
