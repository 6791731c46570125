package nftables

import "golang.org/x/sys/unix"

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

// The attributes that meta and ct have in common.
const (
	dregAttribute = unix.NFTA_META_DREG
	keyAttribute  = unix.NFTA_META_KEY
)

// What golang.org/x/sys lacks.
const (
	nfDrop        = 0
	nfAccept      = 1
	jumpVerdict   = unix.NFT_JUMP & (1<<32 - 1)
	returnVerdict = unix.NFT_RETURN & (1<<32 - 1)
	tproxyFamily  = 1
	tproxyRegPort = 3
)

func (r *rule) add(expression string, attributes ...attribute) {
	r.code = encode(r.code, nested(unix.NFTA_LIST_ELEM,
		text(unix.NFTA_EXPR_NAME, expression), nested(unix.NFTA_EXPR_DATA, attributes...)))
}

func (r *rule) load(s *source) { r.loadFirst(s, s.size) }

// loadFirst loads the first bytes; of a payload there may be fewer than all.
func (r *rule) loadFirst(s *source, size int) {
	if s.expression == payload {
		r.add(payload, number(unix.NFTA_PAYLOAD_DREG, reg1), number(unix.NFTA_PAYLOAD_BASE, s.key>>8),
			number(unix.NFTA_PAYLOAD_OFFSET, s.key&0xff), number(unix.NFTA_PAYLOAD_LEN, uint32(size)))
		return
	}
	r.add(s.expression, number(keyAttribute, s.key), number(dregAttribute, reg1))
}

// mask keeps what bits has of what is loaded.
func (r *rule) mask(bits []byte) {
	r.add("bitwise", number(unix.NFTA_BITWISE_SREG, reg1), number(unix.NFTA_BITWISE_DREG, reg1), number(unix.NFTA_BITWISE_LEN, uint32(len(bits))),
		value(unix.NFTA_BITWISE_MASK, bits), value(unix.NFTA_BITWISE_XOR, make([]byte, len(bits))))
}

func (r *rule) compare(op uint32, with []byte) {
	r.add("cmp", number(unix.NFTA_CMP_SREG, reg1), number(unix.NFTA_CMP_OP, op), value(unix.NFTA_CMP_DATA, with))
}

func (r *rule) equal(s *source, not bool, with []byte) {
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
	r.add("lookup", text(unix.NFTA_LOOKUP_SET, set), number(unix.NFTA_LOOKUP_SREG, reg1),
		number(unix.NFTA_LOOKUP_SET_ID, id), number(unix.NFTA_LOOKUP_FLAGS, flags))
}

// among matches what is in one of the spans, or with not in none, and then there is one or they are values. What needs no
// set gets none, as with nft.
func (r *rule) among(s *source, not bool, spans []span, id uint32) {
	only := spans[0]
	length, prefix := s.prefixLength(only)
	switch {
	case len(spans) > 1:
		r.load(s)
		r.lookup(anonymousName, id, not)
		r.sets = append(r.sets, newSet(id, s.datatype, spans))
	case !prefix:
		r.load(s)
		r.compare(unix.NFT_CMP_GTE, only.from[:s.size])
		r.compare(unix.NFT_CMP_LTE, only.to[:s.size])
	case length == 0: // it is every address, and no condition
	case length%8 == 0:
		r.equal(s, not, only.from[:length/8])
	default:
		r.load(s)
		r.mask(s.leading(length))
		r.compare(equality(not), only.from[:s.size])
	}
}

func (r *rule) immediate(register uint32, v []byte) {
	r.add("immediate", number(unix.NFTA_IMMEDIATE_DREG, register), value(unix.NFTA_IMMEDIATE_DATA, v))
}

// verdict is what becomes of the packet; chain is for a jump.
func (r *rule) verdict(code uint32, chain string) {
	attributes := []attribute{number(unix.NFTA_VERDICT_CODE, code)}
	if code == jumpVerdict {
		attributes = append(attributes, text(unix.NFTA_VERDICT_CHAIN, chain))
	}
	r.add("immediate", number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT),
		nested(unix.NFTA_IMMEDIATE_DATA, nested(unix.NFTA_DATA_VERDICT, attributes...)))
}

// store sets what s reads to what is loaded.
func (r *rule) store(s *source) {
	sreg := uint16(unix.NFTA_META_SREG)
	if s.expression == ct {
		sreg = unix.NFTA_CT_SREG
	}
	r.add(s.expression, number(keyAttribute, s.key), number(sreg, reg1))
}

// constant loads the same for every packet. What nft's language has for that is what a mask of no bits leaves of something
// that every packet has.
func (r *rule) constant() {
	r.load(&metaMark)
	r.mask(make([]byte, metaMark.size))
}
