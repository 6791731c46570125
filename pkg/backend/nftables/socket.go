package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// socket is a conversation with nf_tables about the network namespace in which it was opened. The kernel answers while it
// takes a message, so nothing is ever waited for.
type socket struct {
	fd      int
	buf     []byte // for answers
	deletes bool   // or has deleted
}

// answerSize is what the kernel fills of a list at once.
const answerSize = 32 << 10

func open() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("open netfilter netlink socket", err)
	}
	s := &socket{fd: fd, buf: make([]byte, answerSize)}
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1); err != nil {
			s.close()
			return nil, os.NewSyscallError("ask netlink for short answers with reasons", err)
		}
	}
	return s, nil
}

// commit sends the batch, all of it at once, and returns the first error that the kernel has with it.
func (s *socket) commit(b *batch) error {
	s.deletes = s.deletes || b.deletes
	// All of it must fit into the socket's buffer. Where making that larger is denied, writing still says whether it does.
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 2*len(b.buf))
	if _, err := unix.Write(s.fd, b.buf); err != nil {
		return os.NewSyscallError("send transaction", err)
	}
	var first error
	done := false
	for {
		answers, err := s.read()
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if errors.Is(err, unix.ENOBUFS) {
			continue // there were more errors than there is room for; the first are there
		}
		if err != nil {
			return os.NewSyscallError("receive answer", err)
		}
		for _, a := range answers {
			if r := a.refusal(); r != nil && first == nil {
				first = b.explain(r)
			} else if r == nil {
				done = true
			}
		}
	}
	if first == nil && !done {
		return errors.New("the kernel has not answered")
	}
	return first
}

// answer is one message from the kernel.
type answer struct {
	kind, flags uint16
	number      uint32
	body        []byte
}

func (s *socket) read() ([]answer, error) {
	n, err := unix.Read(s.fd, s.buf)
	if err != nil {
		return nil, err
	}
	var answers []answer
	for b := s.buf[:n]; len(b) >= headerSize; {
		length := int(binary.NativeEndian.Uint32(b))
		if length < headerSize || length > len(b) {
			break
		}
		answers = append(answers, answer{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:]), b[headerSize:length]})
		b = b[min((length+3)&^3, len(b)):]
	}
	return answers, nil
}

// refusal is what the kernel has against a message.
type refusal struct {
	number uint32 // of the message
	errno  unix.Errno
	said   string
	offset int // of what is wrong, within the message; 0 if it is not said
}

// refusal returns nil for an answer that is none.
func (a answer) refusal() *refusal {
	if a.kind != unix.NLMSG_ERROR && a.kind != unix.NLMSG_DONE || len(a.body) < 4 {
		return nil
	}
	errno := -int32(binary.NativeEndian.Uint32(a.body))
	if errno <= 0 {
		return nil
	}
	r := &refusal{number: a.number, errno: unix.Errno(errno)}
	if a.flags&unix.NLM_F_ACK_TLVS != 0 && len(a.body) >= 4+headerSize {
		more := parse(a.body[4+headerSize:])
		r.said = more.text(unix.NLMSGERR_ATTR_MSG)
		if offset := more[unix.NLMSGERR_ATTR_OFFS]; len(offset) == 4 {
			r.offset = int(binary.NativeEndian.Uint32(offset))
		}
	}
	return r
}

func (r *refusal) Error() string {
	if r.said == "" {
		return r.errno.Error()
	}
	return fmt.Sprintf("%s (the kernel says: %s)", r.errno.Error(), r.said)
}

func (r *refusal) Unwrap() error { return r.errno }

// ask sends a request and calls each with what every answer to it has. What goes wrong has its errno.
func (s *socket) ask(kind int, flags uint16, each func(fields), attributes ...attribute) error {
	return s.askFor(unix.NFPROTO_INET, kind, flags, each, attributes...)
}

// askFor asks about tables of a family.
func (s *socket) askFor(family byte, kind int, flags uint16, each func(fields), attributes ...attribute) error {
	request := appendMessage(nil, 0, nftSubsystem|kind, flags, family, 0, attributes...)
	if _, err := unix.Write(s.fd, request); err != nil {
		return os.NewSyscallError("send request", err)
	}
	for {
		answers, err := s.read()
		if err != nil {
			return os.NewSyscallError("receive answer", err)
		}
		for _, a := range answers {
			if r := a.refusal(); r != nil {
				return r
			}
			if a.flags&unix.NLM_F_DUMP_INTR != 0 {
				return ErrChanged
			}
			if a.kind == unix.NLMSG_DONE || a.kind == unix.NLMSG_ERROR {
				return nil
			}
			if len(a.body) >= genHeaderSize {
				each(parse(a.body[genHeaderSize:]))
			}
		}
	}
}
