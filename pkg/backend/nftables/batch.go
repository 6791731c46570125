package nftables

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// batch is messages that the kernel takes as one transaction.
type batch struct {
	buf      []byte
	messages []message
	deletes  bool // something that was there
}

// message is what one of them is about, for when the kernel refuses it.
type message struct {
	at    int // its beginning in the buffer
	verb  string
	chain *chain
	rule  *rule
}

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

const (
	headerSize    = unix.SizeofNlMsghdr
	genHeaderSize = 4 // struct nfgenmsg
	nftSubsystem  = unix.NFNL_SUBSYS_NFTABLES << 8
)

// add appends a message; its number is its place in messages.
func (b *batch) add(m message, kind int, flags uint16, attributes ...attribute) {
	b.addFor(unix.NFPROTO_INET, m, kind, flags, attributes...)
}

// addFor appends a message about a family's tables.
func (b *batch) addFor(family byte, m message, kind int, flags uint16, attributes ...attribute) {
	m.at = len(b.buf)
	b.buf = appendMessage(b.buf, uint32(len(b.messages)), nftSubsystem|kind, flags, family, 0, attributes...)
	b.messages = append(b.messages, m)
}

// border begins or ends the transaction.
func (b *batch) border(kind int, attributes ...attribute) {
	at := len(b.buf)
	b.buf = appendMessage(b.buf, uint32(len(b.messages)), kind, 0, unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, attributes...)
	b.messages = append(b.messages, message{at: at, verb: "commit"})
}

func appendMessage(b []byte, number uint32, kind int, flags uint16, family byte, resource uint16, attributes ...attribute) []byte {
	at := len(b)
	b = append(b, make([]byte, headerSize)...)
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	b = encode(b, attributes...)
	header := b[at:]
	binary.NativeEndian.PutUint32(header, uint32(len(header)))
	binary.NativeEndian.PutUint16(header[4:], uint16(kind))
	binary.NativeEndian.PutUint16(header[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(header[8:], number)
	return b
}

// program is the transaction that makes the table, in the place of one that is there; armed has the gate open from the
// start. It deletes nothing where nothing is: a socket that deleted something takes longer to close.
func (t Table) program(there, armed bool) *batch {
	b := &batch{buf: make([]byte, 0, 16<<10)}
	b.border(unix.NFNL_MSG_BATCH_BEGIN)
	if there {
		b.deleteTable()
	}
	b.add(message{verb: "make " + tableHead}, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, text(unix.NFTA_TABLE_NAME, tableName))
	if t.gated {
		b.gate(armed)
	}
	for i := range t.chains {
		b.chain(&t.chains[i])
	}
	for i := range t.chains {
		for j := range t.chains[i].rules {
			b.rule(&t.chains[i], &t.chains[i].rules[j])
		}
	}
	b.end()
	return b
}

// Batch is what Apply sends into a namespace without the table, for whoever measures what that takes.
func (t Table) Batch() []byte { return t.program(false, false).buf }

// end asks for an answer to the last message and ends the transaction. Errors are told for every message, asked or not.
func (b *batch) end() {
	flags := b.buf[b.messages[len(b.messages)-1].at+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	b.border(unix.NFNL_MSG_BATCH_END)
}

func (b *batch) chain(c *chain) {
	attributes := []attribute{text(unix.NFTA_CHAIN_TABLE, tableName), text(unix.NFTA_CHAIN_NAME, c.name)}
	if c.hook != nil {
		attributes = append(attributes,
			nested(unix.NFTA_CHAIN_HOOK, number(unix.NFTA_HOOK_HOOKNUM, c.hook.number), number(unix.NFTA_HOOK_PRIORITY, uint32(c.hook.priority))),
			number(unix.NFTA_CHAIN_POLICY, nfAccept), text(unix.NFTA_CHAIN_TYPE, c.hook.kind))
	}
	b.add(message{verb: "make", chain: c}, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, attributes...)
}

// rule appends the rule, and ahead of it the lists that it looks up, which the kernel wants filled by then.
func (b *batch) rule(c *chain, r *rule) {
	for i := range r.sets {
		b.list(&r.sets[i], message{verb: "make list of", chain: c, rule: r})
	}
	attributes := []attribute{text(unix.NFTA_RULE_TABLE, tableName), text(unix.NFTA_RULE_CHAIN, c.name), nest(unix.NFTA_RULE_EXPRESSIONS, r.code)}
	if r.why != "" {
		attributes = append(attributes, userdata(unix.NFTA_RULE_USERDATA, udataComment, append([]byte(r.why), 0)))
	}
	b.add(message{verb: "program", chain: c, rule: r}, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, attributes...)
}

func (b *batch) list(s *set, m message) {
	flags := uint32(unix.NFT_SET_ANONYMOUS | unix.NFT_SET_CONSTANT)
	if s.intervals {
		flags |= unix.NFT_SET_INTERVAL
	}
	b.add(m, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE,
		text(unix.NFTA_SET_TABLE, tableName), text(unix.NFTA_SET_NAME, s.name), number(unix.NFTA_SET_ID, s.id),
		number(unix.NFTA_SET_FLAGS, flags), number(unix.NFTA_SET_KEY_TYPE, s.of.id), number(unix.NFTA_SET_KEY_LEN, uint32(s.of.size)),
		userdata(unix.NFTA_SET_USERDATA, udataKeyByteOrder, binary.NativeEndian.AppendUint32(nil, bigEndian)))
	for _, part := range s.elements() {
		b.elements(m, s.name, s.id, part)
	}
}

func (b *batch) elements(m message, set string, id uint32, list []byte) {
	b.add(m, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE,
		text(unix.NFTA_SET_ELEM_LIST_TABLE, tableName), text(unix.NFTA_SET_ELEM_LIST_SET, set),
		number(unix.NFTA_SET_ELEM_LIST_SET_ID, id), nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list))
}

// gate makes the set that Arm and Armed share.
func (b *batch) gate(armed bool) {
	m := message{verb: "make set " + armedSet}
	b.add(m, unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE,
		text(unix.NFTA_SET_TABLE, tableName), text(unix.NFTA_SET_NAME, armedSet), number(unix.NFTA_SET_ID, 0),
		number(unix.NFTA_SET_FLAGS, armedFlags), number(unix.NFTA_SET_KEY_TYPE, mark.id), number(unix.NFTA_SET_KEY_LEN, uint32(mark.size)),
		nested(unix.NFTA_SET_DESC, number(unix.NFTA_SET_DESC_SIZE, armedSize)))
	if armed {
		b.elements(m, armedSet, 0, mark.appendElement(nil, key{}, 0))
	}
}

// What nft keeps with a rule or a set, and the kernel doesn't look at.
const (
	udataComment      = 0 // NFTNL_UDATA_RULE_COMMENT
	udataKeyByteOrder = 0 // NFTNL_UDATA_SET_KEYBYTEORDER
	bigEndian         = 2 // nft's BYTEORDER_BIG_ENDIAN
)

// userdata is one entry: type, length, value.
func userdata(attributeKind uint16, kind byte, v []byte) attribute {
	return attribute{attributeKind, append([]byte{kind, byte(len(v))}, v...)}
}

// removal is the transaction that deletes the table.
func removal() *batch {
	b := &batch{}
	b.border(unix.NFNL_MSG_BATCH_BEGIN)
	b.deleteTable()
	b.end()
	return b
}

func (b *batch) deleteTable() {
	b.deletes = true
	b.add(message{verb: "delete " + tableHead}, unix.NFT_MSG_DELTABLE, 0, text(unix.NFTA_TABLE_NAME, tableName))
}
