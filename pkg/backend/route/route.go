// Package route sets up what rules need of a network namespace beyond netfilter: addresses on lo, and ip rules that send
// marked packets to a table that delivers them locally. It works in the network namespace of the calling thread, which the
// caller has entered and locked.
package route

import (
	"errors"
	"fmt"
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// Apply makes what s says for the families: all of it or, on an error, nothing. It leaves what exists already and removes
// surplus copies, so that the result is the same however often it runs. What others have set up stays; if it is in the way,
// such as another default route in the same table, that is an error. A new rule gets the priority that `ip rule add` gives
// it: ahead of all rules but the one for table local. An empty s costs no system call.
func Apply(s rules.Setup, families []rules.Family) error {
	return withKernel(s, families, func(k kernel, objects []object) error {
		var made []object
		if err := complete(k, objects, &made); err != nil {
			return errors.Join(err, removeAll(k, made))
		}
		return nil
	})
}

// complete adds each missing object, and notes it in made first: adding may fail after the object was made. Once all exist
// it removes all copies of each but the first, which is the one that packets meet.
func complete(k kernel, objects []object, made *[]object) error {
	var surplus []listed
	for _, o := range objects {
		existing, err := k.find(o)
		if err != nil {
			return err
		}
		if len(existing) > 0 {
			surplus = append(surplus, existing[1:]...)
			continue
		}
		*made = append(*made, o)
		if err := k.add(o); err != nil {
			return err
		}
	}
	for _, l := range surplus {
		if err := k.remove(l); err != nil {
			return err
		}
	}
	return nil
}

// Remove removes what s says of the families, even if another program made it. What doesn't exist is no error. If something
// fails, it goes on with the rest.
func Remove(s rules.Setup, families []rules.Family) error {
	return withKernel(s, families, removeAll)
}

// removeAll removes the objects, the last first.
func removeAll(k kernel, objects []object) error {
	var errs []error
	for _, o := range slices.Backward(objects) {
		existing, err := k.find(o)
		errs = append(errs, err)
		for _, l := range existing {
			errs = append(errs, k.remove(l))
		}
	}
	return errors.Join(errs...)
}

// Differences says, one sentence each, what of s the families lack or have more than once: family by family, in s's order.
func Differences(s rules.Setup, families []rules.Family) ([]string, error) {
	var found []string
	err := withKernel(s, families, func(k kernel, objects []object) error {
		for _, o := range objects {
			existing, err := k.find(o)
			switch {
			case err != nil:
				return err
			case len(existing) == 0:
				found = append(found, fmt.Sprintf("%s: %s is missing", o.family, o.kind.tool+o.name))
			case len(existing) > 1:
				found = append(found, fmt.Sprintf("%s: %s is there %d times", o.family, o.kind.tool+o.name, len(existing)))
			}
		}
		return nil
	})
	return found, err
}

// withKernel calls fn with the objects of s, unless there are none.
func withKernel(s rules.Setup, families []rules.Family, fn func(kernel, []object) error) error {
	objects := objectsOf(s, families)
	if len(objects) == 0 {
		return nil
	}
	k, err := open()
	if err != nil {
		return err
	}
	defer k.Close()
	return fn(k, objects)
}

func objectsOf(s rules.Setup, families []rules.Family) []object {
	var objects []object
	for _, f := range families {
		for _, prefix := range s.Loopback {
			if rules.Of(prefix.Addr()) == f {
				objects = append(objects, newAddress(f, prefix))
			}
		}
		for _, r := range s.Routes {
			objects = append(objects, newRule(f, r), newRoute(f, r))
		}
	}
	return objects
}
