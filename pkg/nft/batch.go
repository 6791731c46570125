package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// Batch is a transaction: the kernel takes all of its messages or none.
type Batch struct {
	buf      []byte
	messages []message
	deletes  bool
}

// message is one of a batch's.
type message struct {
	at    int // its offset in the buffer
	about any
}

// NewBatch begins a transaction. A generation, if there is one, is what GETGEN said: Commit then fails with ErrChanged if
// anybody has changed the namespace's tables since.
func NewBatch(generation []byte) *Batch {
	b := &Batch{buf: make([]byte, 0, 16<<10)}
	var attributes []netlink.Attribute
	if generation != nil {
		attributes = append(attributes, netlink.Attribute{Kind: unix.NFNL_BATCH_GENID, Data: generation})
	}
	b.border(unix.NFNL_MSG_BATCH_BEGIN, attributes...)
	return b
}

// Add appends a message about a family's tables. about says in a Refused what the message does.
func (b *Batch) Add(about any, family byte, kind int, flags uint16, attributes ...netlink.Attribute) {
	b.append(about, subsystem|kind, flags, header(family, 0), attributes...)
}

// Delete appends a message that deletes something.
func (b *Batch) Delete(about any, family byte, kind int, attributes ...netlink.Attribute) {
	b.deletes = true
	b.Add(about, family, kind, 0, attributes...)
}

// border begins or ends the transaction.
func (b *Batch) border(kind int, attributes ...netlink.Attribute) {
	b.append("commit", kind, 0, header(unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES), attributes...)
}

// append gives the message its place in messages as its number.
func (b *Batch) append(about any, kind int, flags uint16, body []byte, attributes ...netlink.Attribute) {
	at := len(b.buf)
	b.buf = netlink.AppendMessage(b.buf, uint32(len(b.messages)), kind, flags, body, attributes...)
	b.messages = append(b.messages, message{at, about})
}

// End asks for an acknowledgement of the last message and ends the transaction. The kernel reports errors of every message,
// whether asked or not.
func (b *Batch) End() *Batch {
	flags := b.buf[b.messages[len(b.messages)-1].at+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	b.border(unix.NFNL_MSG_BATCH_END)
	return b
}

// Empty reports whether nothing has been added.
func (b *Batch) Empty() bool { return len(b.messages) == 1 }

// Bytes is what Commit sends.
func (b *Batch) Bytes() []byte { return b.buf }

// Commit carries out a transaction that has been ended. A message that the kernel refuses is a *Refused.
func (c Conn) Commit(b *Batch) error {
	err := c.Conn.Commit(b.buf, b.deletes)
	var r *netlink.Refusal
	switch {
	case errors.Is(err, unix.ERESTART):
		return netlink.ErrChanged
	case errors.As(err, &r) && int(r.Number) < len(b.messages):
		m := b.messages[r.Number]
		return &Refused{m.about, b.expressionAt(m.at + r.Offset), r}
	}
	return err
}

// Refused is the kernel's refusal of a transaction because of one message.
type Refused struct {
	About      any    // as in Add
	Expression string // that the kernel points at, in a rule; "" if it points at none
	*netlink.Refusal
}

func (r *Refused) Error() string { return fmt.Sprintf("%s: %s", r.About, r.Refusal) }

// Unwrap returns the *netlink.Refusal.
func (r *Refused) Unwrap() error { return r.Refusal }

// expressionAt is the name of the expression at an offset in the buffer.
func (b *Batch) expressionAt(at int) string {
	for a := range netlink.Attributes(b.buf[min(at, len(b.buf)):]) {
		e := netlink.Parse(a.Data)
		return e.Text(unix.NFTA_EXPR_NAME)
	}
	return ""
}
