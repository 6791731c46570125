package route

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// kernel is a conversation with the kernel about the network namespace in which it was opened.
type kernel struct{ *netlink.Conn }

func open() (kernel, error) {
	c, err := netlink.Open(unix.NETLINK_ROUTE)
	return kernel{c}, err
}

// listed is an object as the kernel lists it.
type listed struct {
	object
	message []byte
}

// find returns the copies of an object that the kernel lists, in its order; none if the kernel lacks the family. It is an
// error if the list changed meanwhile.
func (k kernel) find(o object) ([]listed, error) {
	var found []listed
	err := k.Ask(o.kind.list, unix.NLM_F_DUMP, o.header, func(message []byte) {
		if o.is(message) {
			found = append(found, listed{o, slices.Clone(message)})
		}
	})
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find %s %s: %w", o.family, o.name, err)
	}
	return found, nil
}

func (k kernel) add(o object) error {
	if err := k.Ask(o.kind.add, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, o.header, ignore, o.attributes...); err != nil {
		return fmt.Errorf("add %s %s: %w", o.family, o.name, err)
	}
	return nil
}

// gone are the errors of removing what doesn't exist: a rule, a route, an address.
var gone = []error{unix.ENOENT, unix.ESRCH, unix.EADDRNOTAVAIL}

// remove removes this one copy. It is no error if it is gone already.
func (k kernel) remove(l listed) error {
	err := k.Ask(l.kind.del, unix.NLM_F_ACK, l.message, ignore)
	if err == nil || slices.ContainsFunc(gone, func(g error) bool { return errors.Is(err, g) }) {
		return nil
	}
	return fmt.Errorf("remove %s %s: %w", l.family, l.name, err)
}

func ignore([]byte) {}
