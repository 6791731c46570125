package route

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// kernel is a conversation with the kernel about the network namespace in which it was opened. netlink.Handle would
// hold one too, but gives no access to the kernel's own words about an error and drops what it doesn't know of a rule.
type kernel struct {
	socket *nl.SocketHandle
}

func open() (*kernel, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE) // to nothing: a plain socket
	if err != nil {
		return nil, fmt.Errorf("open route netlink socket: %w", err)
	}
	if err := socket.SetExtAck(true); err != nil {
		socket.Close()
		return nil, fmt.Errorf("ask netlink for error messages: %w", err)
	}
	return &kernel{&nl.SocketHandle{Socket: socket}}, nil
}

func (k *kernel) close() { k.socket.Close() }

// listed is an object as the kernel lists it.
type listed struct {
	object
	message []byte
}

// find returns what the kernel lists of an object, in its order; nothing in a kernel without the family. A list that was
// changed while the kernel wrote it is an error.
func (k *kernel) find(o object) ([]listed, error) {
	messages, err := k.ask(o.kind.list, unix.NLM_F_DUMP, o.kind.add, o.header)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find %s %s: %w", o.family, o.name, err)
	}
	var found []listed
	for _, message := range messages {
		if o.is(message) {
			found = append(found, listed{o, message})
		}
	}
	return found, nil
}

func (k *kernel) add(o object) error {
	body := slices.Clone(o.header)
	for _, a := range o.attributes {
		body = append(body, a.Serialize()...)
	}
	if _, err := k.ask(o.kind.add, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, 0, body); err != nil {
		return fmt.Errorf("add %s %s: %w", o.family, o.name, err)
	}
	return nil
}

// gone are the kernel's words, by kind, for the removal of what is not there: a rule, a route, an address.
var gone = []error{unix.ENOENT, unix.ESRCH, unix.EADDRNOTAVAIL}

// remove takes out this one copy, unless that has happened already.
func (k *kernel) remove(l listed) error {
	_, err := k.ask(l.kind.del, unix.NLM_F_ACK, 0, l.message)
	if err == nil || slices.ContainsFunc(gone, func(g error) bool { return errors.Is(err, g) }) {
		return nil
	}
	return fmt.Errorf("remove %s %s: %w", l.family, l.name, err)
}

// ask sends a request and returns the answers of a type.
func (k *kernel) ask(request, flags, answers int, body []byte) ([][]byte, error) {
	message := nl.NetlinkRequest{
		NlMsghdr: unix.NlMsghdr{Type: uint16(request), Flags: unix.NLM_F_REQUEST | uint16(flags)},
		RawData:  body,
		Sockets:  map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: k.socket},
	}
	return message.Execute(unix.NETLINK_ROUTE, uint16(answers))
}
