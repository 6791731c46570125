// Package route sets up what rules need of a network namespace beside netfilter: addresses on lo, and ip rules that look
// marked packets up in a table that delivers them locally. It works in the network namespace of the calling thread, which
// the caller has entered and locked.
package route

import (
	"errors"
	"fmt"
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// Apply makes what s says for the families: all of it or, on an error, nothing more than there was. What is there already
// stays as it is and surplus copies of it go, so that the result is the same however often it runs. What others have set
// up stays; where it is in the way, as another default route in the same table, that is an error. A new rule gets the
// priority that `ip rule add` gives it: ahead of all rules but the one for table local. An empty s costs no system call.
func Apply(s rules.Setup, families []rules.Family) error {
	return withKernel(s, families, func(k *kernel, objects []object) error {
		var made []object
		if err := complete(k, objects, &made); err != nil {
			return errors.Join(err, removeAll(k, made))
		}
		return nil
	})
}

// complete adds each object that is missing and notes it in made first: one that fails may have been made. When all are there it removes the copies behind
// the first of each, which is the one that packets meet.
func complete(k *kernel, objects []object, made *[]object) error {
	var surplus []listed
	for _, o := range objects {
		there, err := k.find(o)
		if err != nil {
			return err
		}
		if len(there) > 0 {
			surplus = append(surplus, there[1:]...)
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

// Remove takes what s says out of the families, whoever has made it. What is not there is no error; whatever fails, the
// rest is tried.
func Remove(s rules.Setup, families []rules.Family) error {
	return withKernel(s, families, removeAll)
}

// removeAll takes the objects out, the last first.
func removeAll(k *kernel, objects []object) error {
	var errs []error
	for _, o := range slices.Backward(objects) {
		there, err := k.find(o)
		errs = append(errs, err)
		for _, l := range there {
			errs = append(errs, k.remove(l))
		}
	}
	return errors.Join(errs...)
}

// Differences says, one sentence each, what of s the families lack or have more than once: family by family, in s's order.
func Differences(s rules.Setup, families []rules.Family) ([]string, error) {
	var found []string
	err := withKernel(s, families, func(k *kernel, objects []object) error {
		for _, o := range objects {
			there, err := k.find(o)
			switch {
			case err != nil:
				return err
			case len(there) == 0:
				found = append(found, fmt.Sprintf("%s: %s is missing", o.family, o.kind.tool+o.name))
			case len(there) > 1:
				found = append(found, fmt.Sprintf("%s: %s is there %d times", o.family, o.kind.tool+o.name, len(there)))
			}
		}
		return nil
	})
	return found, err
}

// withKernel calls fn with the objects of s, unless there are none.
func withKernel(s rules.Setup, families []rules.Family, fn func(*kernel, []object) error) error {
	objects := objectsOf(s, families)
	if len(objects) == 0 {
		return nil
	}
	k, err := open()
	if err != nil {
		return err
	}
	defer k.close()
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
