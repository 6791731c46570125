// Package netlink speaks netlink with the kernel: requests, dumps, and transactions of many messages.
//
// The encoding is our own, not google/nftables' or mdlayher/netlink's, for these reasons. A transaction of thousands of
// messages asks for one acknowledgement, and a refusal is matched by its sequence number with the message that caused it.
// One printer prints the rules that are sent and those that the kernel lists, so CHECK compares both in one language;
// google/nftables' reader drops what it doesn't know. And this package adds no initialization to the plugin's start.
package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Conn is a netlink socket. It concerns the network namespace in which it was opened. The kernel answers a message while it
// is being sent, so reading never blocks.
type Conn struct {
	fd      int
	number  uint32 // of the last request
	buf     []byte // for answers
	deleted bool
}

// ErrChanged is returned for a dump that may be inconsistent: the listed objects changed during the dump.
var ErrChanged = errors.New("it changed while the kernel listed it")

// answerSize is the most that the kernel puts into one part of a dump.
const answerSize = 32 << 10

// Open opens a socket of a netlink protocol, such as unix.NETLINK_ROUTE.
func Open(protocol int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("open netlink socket", err)
	}
	c := &Conn{fd: fd, buf: make([]byte, answerSize)}
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1); err != nil {
			c.Close()
			return nil, os.NewSyscallError("ask netlink for short answers with reasons", err)
		}
	}
	return c, nil
}

// Ask sends one request and calls each with the body of every answer. The request must ask for a dump or an
// acknowledgement, which ends the answers. A refusal is a *Refusal.
func (c *Conn) Ask(kind int, flags uint16, body []byte, each func(body []byte), attributes ...Attribute) error {
	c.number++
	if err := c.write(AppendMessage(nil, c.number, kind, flags, body, attributes...)); err != nil {
		return os.NewSyscallError("send request", err)
	}
	var changed error
	for {
		answers, err := c.read()
		if err != nil {
			return os.NewSyscallError("receive answer", err)
		}
		for _, a := range answers {
			if a.number != c.number {
				continue
			}
			if r := a.refusal(); r != nil {
				return r
			}
			if a.flags&unix.NLM_F_DUMP_INTR != 0 {
				changed = ErrChanged
			}
			if a.kind == unix.NLMSG_DONE || a.kind == unix.NLMSG_ERROR {
				return changed
			}
			each(a.body)
		}
	}
}

// Commit sends all messages of a transaction at once and returns the first *Refusal. The last message must ask for an
// acknowledgement. deletes says that the transaction deletes something; see Close.
func (c *Conn) Commit(messages []byte, deletes bool) error {
	c.deleted = c.deleted || deletes
	// All messages must fit into the socket's buffer. If enlarging it is denied, the write fails when they don't.
	_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*len(messages))
	if err := c.write(messages); err != nil {
		return os.NewSyscallError("send transaction", err)
	}
	var first error
	acknowledged := false
	for {
		answers, err := c.read()
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if errors.Is(err, unix.ENOBUFS) {
			continue // more errors than fit into the buffer; it holds the first ones
		}
		if err != nil {
			return os.NewSyscallError("receive answer", err)
		}
		for _, a := range answers {
			if r := a.refusal(); r == nil {
				acknowledged = true
			} else if first == nil {
				first = r
			}
		}
	}
	if first == nil && !acknowledged {
		return errors.New("the kernel has not answered")
	}
	return first
}

// HeaderSize is the size of struct nlmsghdr, with which every message begins.
const HeaderSize = unix.SizeofNlMsghdr

// AppendMessage appends a request to b: a header with this sequence number, the body and the attributes.
func AppendMessage(b []byte, number uint32, kind int, flags uint16, body []byte, attributes ...Attribute) []byte {
	at := len(b)
	b = append(b, make([]byte, HeaderSize)...)
	b = append(b, body...)
	b = AppendAttributes(b, attributes...)
	header := b[at:]
	binary.NativeEndian.PutUint32(header, uint32(len(header)))
	binary.NativeEndian.PutUint16(header[4:], uint16(kind))
	binary.NativeEndian.PutUint16(header[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(header[8:], number)
	return b
}

// answer is one message from the kernel.
type answer struct {
	kind, flags uint16
	number      uint32
	body        []byte
}

// write and read try again what a signal has interrupted.
func (c *Conn) write(messages []byte) error {
	for {
		if _, err := unix.Write(c.fd, messages); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (c *Conn) read() ([]answer, error) {
	n, err := unix.Read(c.fd, c.buf)
	if errors.Is(err, unix.EINTR) {
		return c.read()
	}
	if err != nil {
		return nil, err
	}
	return messages(c.buf[:n]), nil
}

// messages splits what one read returned. It stops at the first that is malformed.
func messages(b []byte) (all []answer) {
	for len(b) >= HeaderSize {
		length := int(binary.NativeEndian.Uint32(b))
		if length < HeaderSize || length > len(b) {
			break
		}
		all = append(all, answer{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:]), b[HeaderSize:length]})
		b = b[min((length+3)&^3, len(b)):]
	}
	return all
}

// Refusal is the kernel's error for one message. It wraps the errno.
type Refusal struct {
	Number uint32 // the message's sequence number
	Errno  unix.Errno
	Reason string // in the kernel's words, often empty
	Offset int    // of the offending attribute in the message; 0 if unknown
}

// refusal returns nil if the answer isn't one.
func (a answer) refusal() *Refusal {
	if a.kind != unix.NLMSG_ERROR && a.kind != unix.NLMSG_DONE || len(a.body) < 4 {
		return nil
	}
	errno := -int32(binary.NativeEndian.Uint32(a.body))
	if errno <= 0 {
		return nil
	}
	r := &Refusal{Number: a.number, Errno: unix.Errno(errno)}
	if a.flags&unix.NLM_F_ACK_TLVS != 0 && len(a.body) >= 4+HeaderSize {
		more := Parse(a.body[4+HeaderSize:])
		r.Reason = more.Text(unix.NLMSGERR_ATTR_MSG)
		if offset := more[unix.NLMSGERR_ATTR_OFFS]; len(offset) == 4 {
			r.Offset = int(binary.NativeEndian.Uint32(offset))
		}
	}
	return r
}

func (r *Refusal) Error() string {
	if r.Reason == "" {
		return r.Errno.Error()
	}
	return fmt.Sprintf("%s (the kernel says: %s)", r.Errno.Error(), r.Reason)
}

func (r *Refusal) Unwrap() error { return r.Errno }
